"""GPTQ (arXiv 2210.17323): one column after the other; those not yet rounded make up for the error of the others."""

from __future__ import annotations

import numpy as np

from dsv3c.compiler.formats.grids import Grid
from dsv3c.compiler.formats.grouping import Grouping
from dsv3c.compiler.formats.rounding import Rounded
from dsv3c.compiler.quantisation.columns import Columns
from dsv3c.compiler.quantisation.inputs import DAMPING, Array, Factor, MatrixInputs

_BLOCK = 128  # columns that are corrected by one product for the errors of all columns before them


def gptq(
    w: Array,
    inputs: MatrixInputs,
    grid: Grid,
    grouping: Grouping,
    *,
    damping: float = DAMPING,
    act_order: bool = False,
) -> Rounded:
    """w f32 [N, K]. damping: of the mean of the Hessian's diagonal.

    act_order: inputs of large mean square first; scales are then searched beforehand. Otherwise the scales of a group
    are searched when it is reached, for the weights as they are corrected by then.
    """
    columns = Columns(w, grid, grouping)
    factor = inputs.factor(damping, act_order)
    if act_order:
        for group in range(columns.groups):
            columns.search(group, columns.weights[columns.span(group)], inputs.importance[columns.span(group)])
    compensate(columns, factor, search=not act_order)
    return columns.rounded()


def compensate(columns: Columns, factor: Factor, search: bool) -> None:
    """Round all columns, each at its target; `search`: the scales of each group when its first column is reached."""
    n = columns.weights.shape[1]
    done = np.zeros((columns.k, n), np.float32)  # errors in the order of rounding
    for start in range(0, columns.k, _BLOCK):
        stop = min(start + _BLOCK, columns.k)
        block = columns.weights[factor.order[start:stop]]
        block += factor.carry[start:stop, :start] @ done[:start]
        for at in range(start, stop):
            column = int(factor.order[at])
            group = column // columns.size
            if search and column % columns.size == 0:
                target = _targets(columns, factor, done, block, start, at, stop)
                columns.search(group, target, factor.cost[at : at + target.shape[0]])
            target = block[at - start] + factor.carry[at, start:at] @ done[start:at]
            columns.round(column, target)
            done[at] = columns.error[column]


def _targets(columns: Columns, factor: Factor, done: Array, block: Array, start: int, at: int, stop: int) -> Array:
    """The weights of the group that begins at `at`, corrected for all errors so far."""
    end = min(at + columns.size, columns.k)
    known = block[at - start : end - start] + factor.carry[at : min(end, stop), start:at] @ done[start:at]
    if end <= stop:
        return known
    # The group goes on behind the block.
    beyond = columns.weights[stop:end] + factor.carry[stop:end, :at] @ done[:at]
    return np.concatenate([known, beyond])
