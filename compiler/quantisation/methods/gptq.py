"""GPTQ (arXiv 2210.17323): one column after the other; those not yet rounded make up for the errors of the others.

Afterwards a round of coordinate descent on the same error (docs/28).
"""

from __future__ import annotations

import numpy as np

from dsv3c.compiler.formats.grids import Grid
from dsv3c.compiler.formats.grouping import Grouping
from dsv3c.compiler.formats.rounding import Rounded
from dsv3c.compiler.quantisation.columns import Columns
from dsv3c.compiler.quantisation.descent import descend
from dsv3c.compiler.quantisation.inputs import DAMPING, Array, Factor, MatrixInputs

SWEEPS = 1
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
    if not factor.in_turn:
        importance = factor.hessian.diagonal()
        for group in range(columns.groups):
            own = columns.span(group)
            columns.search(group, columns.weights[own], importance[own])
    done = np.zeros_like(columns.weights)  # errors in the order of rounding
    for start in range(0, columns.k, _BLOCK):
        _round_block(columns, factor, done, start, min(start + _BLOCK, columns.k), first if start == 0 else None)


def _round_block(
    columns: Columns, factor: Factor, done: Array, start: int, stop: int, first: Array | None = None
) -> None:
    """Round the columns from `start` to `stop` in the order of rounding, and put their errors into `done` [K, N]."""
    base = columns.weights[factor.order[start:stop]]
    base += factor.carry[start:stop, :start] @ done[:start]

    def targets(at: int, end: int) -> Array:
        """The weights from `at` to `end` as the errors before `at` correct them."""
        within = base[at - start : end - start], start
        known, since = within if end <= stop else (columns.weights[at:end], 0)  # a group may end behind the block
        corrected: Array = known + factor.carry[at:end, since:at] @ done[since:at]
        return corrected

    for at in range(start, stop):
        column = int(factor.order[at])
        group, place = divmod(column, columns.size)
        if place == 0 and factor.in_turn:
            own = columns.span(group)
            columns.search(group, targets(own.start, own.stop), factor.cost[own])
        columns.round(column, first if first is not None and at == start else targets(at, at + 1)[0])
        done[at] = columns.error[column]
