"""Coordinate descent on the error of the outputs, from codes that a method has found.

The error of a row of the matrix is e H eᵀ, e the errors of its weights, H their Hessian. Scales are fitted to the codes
by least squares, then each weight in turn gets the code that is best while all others stay. Neither step raises the
error, up to what the type of the scales takes.
"""

from __future__ import annotations

import numpy as np

from dsv3c.compiler.quantisation.columns import Columns
from dsv3c.compiler.quantisation.inputs import Array
from dsv3c.compiler.quantisation.scales import Scales, stored

_BLOCK = 128  # columns whose slopes are taken by one product


def descend(columns: Columns, hessian: Array, sweeps: int) -> None:
    """Better the codes and scales of `columns`; hessian f32 [K, K], its diagonal positive."""
    block = max(columns.size, _BLOCK // columns.size * columns.size)
    for _ in range(sweeps):
        for start in range(0, columns.k, block):
            span = slice(start, min(start + block, columns.k))
            # Half the slope of the error along each weight, kept up to date for the columns of the block.
            slope = hessian[span] @ columns.error
            for group in range(start // columns.size, -(-span.stop // columns.size)):
                _fit_scales(columns, hessian, span, slope, group)
            _fit_codes(columns, hessian, span, slope)


def _fit_scales(columns: Columns, hessian: Array, block: slice, slope: Array, group: int) -> None:
    """The scales of a group that are best for its codes, where the type of scales can come nearer to them."""
    own = columns.span(group)
    old = columns.scales(group)
    step = old.scale.astype(np.float32)
    values = columns.grid.values(columns.codes[own], old.zero)
    square = np.einsum("gn,gn->n", hessian[own, own] @ values, values)
    along = np.einsum("gn,gn->n", slope[own.start - block.start : own.stop - block.start], values)
    if columns.grouping.per_tensor:
        square, along = (np.full_like(part, part.sum()) for part in (square, along))
    exact = step + np.divide(along, square, out=np.zeros_like(along), where=square > 0)
    found = stored(Scales(exact, old.zero), columns.grouping)
    change = found.scale.astype(np.float32) - step
    better = change * (2 * along - change * square) > 0
    columns.set(group, found.where(better, old))
    change = np.where(better, change, 0)
    moved = values * -change
    columns.error[own] += moved
    slope += hessian[block, own] @ moved


def _fit_codes(columns: Columns, hessian: Array, block: slice, slope: Array) -> None:
    """Each column of the block in turn at the target that is best while all other columns stay."""
    moved = np.zeros_like(slope)
    for at, column in enumerate(range(block.start, block.stop)):
        error = columns.error[column].copy()
        own = hessian[column, block.start : column] @ moved[:at]
        own += slope[at]
        own /= hessian[column, column]
        columns.round(column, columns.weights[column] - error + own)
        np.subtract(columns.error[column], error, out=moved[at])
