"""How weights become codes that stand for floats, see rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.formats import mx
from dsv3c.compiler.formats.elements import NUMPY_DTYPES, as_float32
from dsv3c.compiler.formats.grids import Grid
from dsv3c.compiler.formats.grouping import Grouping
from dsv3c.compiler.formats.rounding import Rounded, chunks, lengthen, padded_columns

Array = NDArray[Any]


def nearest_float(w: Array, grid: Grid, grouping: Grouping) -> Rounded:
    """To the nearest of the grid's numbers, the largest magnitude of a group to the largest of them.

    A scale e8m0 is the power of two that OCP MX v1.0, 6.3 takes: a magnitude above the grid's largest becomes that.
    """
    *leading, k = w.shape
    rows, padded, groups = w.reshape(-1, k), grouping.padded_k(k), grouping.count(k)
    codes = np.empty((rows.shape[0], padded), np.uint8)
    scale = np.empty((rows.shape[0], groups), NUMPY_DTYPES[grouping.scale])
    for chunk in chunks(rows.shape[0], padded):
        values = padded_columns(as_float32(rows[chunk]), padded).reshape(-1, groups, padded // groups)
        codes[chunk].reshape(values.shape)[...], scale[chunk] = _rounded(values, grid, grouping)
    return Rounded(codes.reshape(*leading, padded), scale.reshape(*leading, groups), None)


def _rounded(values: Array, grid: Grid, grouping: Grouping) -> tuple[Array, Array]:
    """Codes [N, KG, G] and scales [N, KG] of values [N, KG, G]."""
    magnitudes = np.ascontiguousarray(np.abs(values).reshape(-1, values.shape[-1]).T)  # a short axis is slow to reduce
    largest = magnitudes.max(axis=0).reshape(values.shape[:-1])
    if grouping.scale == "e8m0":
        scale = mx.scale_codes(largest).view(NUMPY_DTYPES["e8m0"])
        divisor = scale.astype(np.float32)
    else:
        exact = largest / np.float32(grid.largest(own_zeros=False))
        scale = exact.astype(NUMPY_DTYPES[grouping.scale])
        divisor = scale.astype(np.float32)
        lengthen(exact, scale, divisor)
    divisor[divisor == 0] = np.inf  # a group of zeros
    return grid.encode(values / divisor[..., None], None), scale
