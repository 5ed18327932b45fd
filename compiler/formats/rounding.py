"""How weights become codes and scales: each method is given the grid and the grouping, and knows no format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.formats import fp8
from dsv3c.compiler.formats.elements import NUMPY_DTYPES, as_float32
from dsv3c.compiler.formats.grids import Grid, Integers
from dsv3c.compiler.formats.grouping import Grouping

Array = NDArray[Any]

_CHUNK_ELEMENTS = 1 << 16  # rows are rounded in chunks of this size: 256 kB of float32 stays in the L2 cache
_FINE_SCALE = 2.0**-17  # from here on float16, whose steps are 2^-24 at least, takes less than 1/256 from a scale
SHORTEST = 1 + 1 / 256  # by more than this an exact scale may not exceed the stored one: half a code of 127
_LONG_GROUP = 128  # beyond it numpy reduces the last axis fast enough by itself


class Rounded(NamedTuple):
    """codes u8 [..., N, Kp], scale [..., N, KG], zero u8 [..., N, KG] or None, as the grouping says."""

    codes: Array
    scale: Array
    zero: Array | None


# (w[..., N, K], float or fp8.CODED, grid, grouping) -> codes; padding of K has codes that stand for 0. A scale may come
# out infinite: whoever asked looks at that.
Rounding = Callable[[Array, Grid, Grouping], Rounded]


def chunks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows that stay in the cache."""
    step = max(1, _CHUNK_ELEMENTS // max(1, columns))
    return (slice(start, start + step) for start in range(0, rows, step))


def nearest(w: Array, grid: Grid, grouping: Grouping) -> Rounded:
    """To the nearest of evenly spaced codes, the scale by the extremes of each group."""
    assert isinstance(grid, Integers)
    *leading, k = w.shape
    rows, padded = w.reshape(-1, k), grouping.padded_k(k)
    groups = grouping.count(k)
    codes = np.empty((rows.shape[0], padded), np.uint8)
    scale = np.empty((rows.shape[0], groups), NUMPY_DTYPES[grouping.scale])
    zero = None if grouping.zero is None else np.empty(scale.shape, NUMPY_DTYPES[grouping.zero])
    shared = matrix_extremes(rows, w.shape[-2]) if grouping.per_tensor else None
    for chunk in chunks(rows.shape[0], padded):
        values = padded_columns(as_float32(rows[chunk]), padded).reshape(-1, groups, padded // groups)
        extremes = _extremes(values) if shared is None else (shared[0][chunk], shared[1][chunk])
        chunk_zero = None if zero is None else zero[chunk]
        _round_groups(values, extremes, grid, codes[chunk].reshape(values.shape), scale[chunk], chunk_zero)
    shaped_zero = None if zero is None else zero.reshape(*leading, groups)
    return Rounded(codes.reshape(*leading, padded), scale.reshape(*leading, groups), shaped_zero)


def fp8_blocks(w: Array, grid: Grid, grouping: Grouping) -> Rounded:
    """To the nearest float8_e4m3 in blocks of 128 x 128; codes and scales of fp8.CODED stay as they are."""
    *leading, rows, k = w.shape
    padded, groups = grouping.padded_k(k), grouping.count(k)
    codes = np.empty((*leading, rows, padded), np.uint8)
    scale = np.empty((*leading, rows, groups), np.float32)
    for index in np.ndindex(*leading):
        if w.dtype == fp8.CODED:
            # The last scale goes on behind the end: padding does not make a group's scales differ.
            whole = np.pad(w[index], ((0, 0), (0, padded - k)), mode="edge")
            whole["code"][:, k:] = 0
            codes[index], scale[index] = fp8.keep(whole)
        else:
            codes[index], scale[index] = fp8.encode(padded_columns(as_float32(w[index]), padded))
    return Rounded(codes, scale, None)


def padded_columns(x: Array, columns: int) -> Array:
    """x[N, K] with zero columns up to `columns`, x itself when it has them."""
    if x.shape[1] == columns:
        return x
    out = np.zeros((x.shape[0], columns), x.dtype)
    out[:, : x.shape[1]] = x
    return out


def _extremes(values: Array) -> tuple[Array, Array]:
    """Smallest and largest of each group of values [N, KG, G].

    numpy reduces a short last axis element by element; groups laid side by side are reduced by whole vectors, six times
    as fast for G = 32, transposition included.
    """
    if values.shape[-1] > _LONG_GROUP:
        return values.min(axis=-1), values.max(axis=-1)
    columns = np.ascontiguousarray(values.reshape(-1, values.shape[-1]).T)
    return columns.min(axis=0).reshape(values.shape[:-1]), columns.max(axis=0).reshape(values.shape[:-1])


def matrix_extremes(rows: Array, per_matrix: int) -> tuple[Array, Array]:
    """Smallest and largest of each matrix of `per_matrix` rows [N, K], for each of its rows [N, 1]."""
    extremes = np.zeros((2, rows.shape[0]), np.float32)
    for chunk in chunks(*rows.shape):
        values = as_float32(rows[chunk])
        extremes[:, chunk] = values.min(axis=1), values.max(axis=1)
    low, high = extremes.reshape(2, -1, per_matrix)
    return np.repeat(low.min(axis=1), per_matrix)[:, None], np.repeat(high.max(axis=1), per_matrix)[:, None]


def lengthen(exact: Array, scale: Array, divisor: Array) -> None:
    """Round up the scales [N, KG] of which rounding took so much that the largest code would not reach its weight.

    Below the normal numbers of float16 a scale has few bits, and none below 3e-8: its whole group would become zero.
    """
    if scale.dtype == np.float32 or np.abs(divisor).min() >= _FINE_SCALE:
        return
    short = np.abs(exact) > np.abs(divisor) * np.float32(SHORTEST)
    if short.any():
        away = np.copysign(np.float32(np.inf), exact[short]).astype(scale.dtype)
        scale[short] = np.nextafter(scale[short], away)
        divisor[short] = scale[short]


def _exact_scale(grid: Integers, low: Array, high: Array, own_zeros: bool) -> Array:
    """The scale of groups that reach from `low` to `high`."""
    if own_zeros:
        return (high - low) / np.float32(grid.highest - grid.lowest)
    below, above = grid.zero - grid.lowest, grid.highest - grid.zero
    if below == above:
        largest: Array = np.maximum(high, 0 - low)  # of zeros +0, as -low would not be
        return largest / np.float32(above)
    # The range of codes is lopsided: its long side goes to the sign of the largest magnitude.
    return np.where(-low >= high, low, high) / np.float32(-below)


def _round_groups(
    values: Array, extremes: tuple[Array, Array], grid: Integers, codes: Array, scale: Array, zero: Array | None
) -> None:
    """Fill codes [N, KG, G], scale [N, KG] and zero [N, KG] from values [N, KG, G], which lie between `extremes`."""
    low, high = extremes
    if zero is not None:
        np.minimum(low, 0, out=low)
        np.maximum(high, 0, out=high)
    # Which of +0 and -0 is the smaller one depends on the machine.
    exact = _exact_scale(grid, low + np.float32(0), high + np.float32(0), zero is not None)
    scale[...] = exact
    divisor = scale.astype(np.float32)
    lengthen(exact, scale, divisor)
    divisor[divisor == 0] = np.inf  # a group of zeros: every code is the zero point
    rounded = values / divisor[..., None]
    np.rint(rounded, out=rounded)
    if zero is None:
        rounded += np.float32(grid.zero)
    else:
        zero[...] = np.clip(np.rint(-low / divisor), grid.lowest, grid.highest)
        rounded += zero[..., None]
    np.clip(rounded, grid.lowest, grid.highest, out=rounded)
    np.copyto(codes, rounded, casting="unsafe")
