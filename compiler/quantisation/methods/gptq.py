"""GPTQ (arXiv 2210.17323): one column after the other; those not yet rounded make up for the errors of the others.

Afterwards some rounds of coordinate descent on the same error: at two bits they take off another third of it.
"""

from __future__ import annotations

import numpy as np

from dsv3c.compiler.formats.grids import Grid
from dsv3c.compiler.formats.grouping import Grouping
from dsv3c.compiler.formats.rounding import Rounded
from dsv3c.compiler.quantisation.columns import Columns
from dsv3c.compiler.quantisation.descent import descend
from dsv3c.compiler.quantisation.inputs import DAMPING, Array, Factor, MatrixInputs

SWEEPS = 2
_BLOCK = 128  # columns that are corrected by one product for the errors of all columns before them


def gptq(
    w: Array,
    inputs: MatrixInputs,
    grid: Grid,
    grouping: Grouping,
    *,
    damping: float = DAMPING,
    act_order: bool = False,
    sweeps: int = SWEEPS,
) -> Rounded:
    """w f32 [N, K]. damping: of the mean of the Hessian's diagonal. act_order: large inputs first. sweeps: rounds of
    coordinate descent, none for GPTQ as it was published."""
    columns = Columns(w, grid, grouping)
    factor = inputs.factor(damping, act_order)
    compensate(columns, factor)
    descend(columns, factor.hessian, sweeps)
    return columns.rounded()


def compensate(columns: Columns, factor: Factor, first: Array | None = None) -> None:
    """Round all columns, each at its target; `first` [N]: another target for the first one.

    The scales of a group are searched when it is reached, for its weights as they are corrected by then; in another
    order than that of the columns, all beforehand.
    """
    in_turn = bool((np.diff(factor.order) == 1).all())
    if not in_turn:
        importance = factor.hessian.diagonal()
        for group in range(columns.groups):
            own = columns.span(group)
            columns.search(group, columns.weights[own], importance[own])
    done = np.zeros_like(columns.weights)  # errors in the order of rounding
    for start in range(0, columns.k, _BLOCK):
        stop = min(start + _BLOCK, columns.k)
        block = columns.weights[factor.order[start:stop]]
        block += factor.carry[start:stop, :start] @ done[:start]
        for at in range(start, stop):
            column = int(factor.order[at])
            if in_turn and column % columns.size == 0:
                own = columns.span(column // columns.size)
                target = columns.weights[own] + factor.carry[own, :at] @ done[:at]
                columns.search(column // columns.size, target, factor.cost[own])
            target = block[at - start] + factor.carry[at, start:at] @ done[start:at]
            columns.round(column, first if first is not None and at == 0 else target)
            done[at] = columns.error[column]
