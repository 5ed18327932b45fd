"""GPTQ (arXiv 2210.17323): one column after the other; those not yet rounded make up for the errors of the others.

Afterwards a round of coordinate descent on the same error (docs/28-rounding.md).
"""

from __future__ import annotations

import numpy as np

from dsv3c.compiler.formats.grids import Grid
from dsv3c.compiler.formats.grouping import Grouping
from dsv3c.compiler.formats.rounding import Rounded
from dsv3c.compiler.quantisation.columns import Columns
from dsv3c.compiler.quantisation.descent import descend
from dsv3c.compiler.quantisation.inputs import Array, Factor, MatrixInputs

SWEEPS = 1
_BLOCK = 128  # columns that are corrected by one product for the errors of all columns before them


def gptq(
    w: Array,
    inputs: MatrixInputs,
    grid: Grid,
    grouping: Grouping,
    *,
    sweeps: int = SWEEPS,
) -> Rounded:
    """w f32 [N, K]. sweeps: rounds of coordinate descent, none for GPTQ as it was published. Raises LinAlgError."""
    columns = Columns(w, grid, grouping)
    compensate(columns, inputs.factor)
    descend(columns, inputs.factor.hessian, sweeps)
    return columns.rounded()


def compensate(columns: Columns, factor: Factor, first: Array | None = None) -> None:
    """Round all columns, each at its target; `first` [N]: another target for the first one.

    The scales of a group are searched when it is reached, for its weights as they are corrected by then.
    """
    done = np.zeros_like(columns.weights)  # the errors of columns that are rounded
    for start in range(0, columns.k, _BLOCK):
        _round_block(columns, factor, done, start, min(start + _BLOCK, columns.k), first if start == 0 else None)


def _round_block(
    columns: Columns, factor: Factor, done: Array, start: int, stop: int, first: Array | None = None
) -> None:
    """Round the columns from `start` to `stop`, and put their errors into `done` [K, N]."""
    base = columns.weights[start:stop].copy()
    base += factor.carry[start:stop, :start] @ done[:start]

    def targets(at: int, end: int) -> Array:
        """The weights from `at` to `end` as the errors before `at` correct them."""
        within = base[at - start : end - start], start
        known, since = within if end <= stop else (columns.weights[at:end], 0)  # a group may end behind the block
        corrected: Array = known + factor.carry[at:end, since:at] @ done[since:at]
        return corrected

    for at in range(start, stop):
        group, place = divmod(at, columns.size)
        if place == 0:
            own = columns.span(group)
            columns.search(group, targets(own.start, own.stop), factor.cost[own])
        columns.round(at, first if first is not None and at == start else targets(at, at + 1)[0])
        done[at] = columns.error[at]
