"""Scales and zero points of groups, searched: those that leave the least weighted error.

Groups lie side by side here: weights [G, M], the G members of each of M groups, so that numpy works on whole vectors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.compiler.formats.float_rounding import nearest_float
from dsv3c.compiler.formats.grids import Grid, Integers
from dsv3c.compiler.formats.grouping import Grouping
from dsv3c.compiler.formats.rounding import nearest

Array = NDArray[Any]

_FACTORS = np.linspace(0.5, 1.1, 10, dtype=np.float32)  # of the scale that just reaches the largest weight of a group
_FITS = 3
_SMALLEST_POWER = np.float32(2.0**-126)
_CHUNK_ELEMENTS = 1 << 16  # 256 kB of float32 stays in the L2 cache


class Scales(NamedTuple):
    """Of M groups: scale [M], as stored or f32; zero, codes as f32 [M], or None."""

    scale: Array
    zero: Array | None

    def where(self, chosen: Array, other: Scales) -> Scales:
        """These for the groups that are chosen [M], the others for the rest."""
        zero = None if self.zero is None or other.zero is None else np.where(chosen, self.zero, other.zero)
        return Scales(np.where(chosen, self.scale, other.scale), zero)


def rounded(scaled: Array, zero: Array | None, grid: Grid) -> tuple[Array, Array]:
    """The numbers of a grid nearest to those that are divided by their scale already, and their codes u8."""
    if isinstance(grid, Integers):
        values = grid.nearest(scaled, zero)
        return values, grid.codes(values, zero)
    codes = grid.encode(scaled, zero)
    return grid.values(codes, zero), codes


def _nearest(w: Array, scales: Scales, grid: Grid) -> Array:
    """The numbers nearest to w [..., M] over the scales of each column; with a scale of 0 all are 0."""
    scaled = w * inverse(scales.scale)
    return grid.nearest(scaled, scales.zero) if isinstance(grid, Integers) else rounded(scaled, scales.zero, grid)[0]


def inverse(scale: Array) -> Array:
    """1 / scale as f32; 0 for 0 and for what is too small to divide by."""
    exact = scale.astype(np.float32)
    found: Array = np.divide(1, exact, out=np.zeros_like(exact), where=np.abs(exact) >= _SMALLEST_POWER)
    return found


def search(w: Array, importance: Array, grid: Grid, grouping: Grouping) -> Scales:
    """The stored scales of groups w [G, M] that leave the least sum of importance (w - value)², importance [G].

    Never worse than the scales by the extremes of each group, which are what it starts from. Infinite where these are.
    """
    if grouping.per_tensor:
        one = _search(w.reshape(-1, 1), np.repeat(importance, w.shape[1]), grid, grouping)
        zero = None if one.zero is None else np.repeat(one.zero, w.shape[1])
        return Scales(np.repeat(one.scale, w.shape[1]), zero)
    step = max(1, _CHUNK_ELEMENTS // max(1, w.shape[0]))
    parts = [_search(w[:, at : at + step], importance, grid, grouping) for at in range(0, w.shape[1], step)]
    zero = None if grouping.zero is None else np.concatenate([part.zero for part in parts if part.zero is not None])
    return Scales(np.concatenate([part.scale for part in parts]), zero)


def _search(w: Array, importance: Array, grid: Grid, grouping: Grouping) -> Scales:
    weighted = w * importance[:, None]
    first = by_extremes(w, grid, grouping)
    start = first.scale.astype(np.float32)
    sides = (1, -1) if grouping.zero is None and _is_lopsided(grid) else (1,)
    found, most = first, np.full(w.shape[1], -1, np.float32)
    for factor in (side * factor for side in sides for factor in _FACTORS):
        fitted, gain = _fit(w, weighted, importance, grid, Scales(start * factor, first.zero))
        better = gain > most
        found, most = fitted.where(better, found), np.where(better, gain, most)
    # A group whose scale is infinite keeps it, and is refused: no finite one stands for its weights.
    best, least = first, np.where(np.isfinite(start), _error(w, importance, grid, first), -1)
    for _ in range(_FITS):
        kept = stored(found, grouping)
        error = _error(w, importance, grid, kept)
        better = error < least
        best, least = kept.where(better, best), np.where(better, error, least)
        found, _ = _fit(w, weighted, importance, grid, best)
    return best


def by_extremes(w: Array, grid: Grid, grouping: Grouping) -> Scales:
    """The stored scales of groups w [G, M] as rounding to nearest has them."""
    rounding = nearest if isinstance(grid, Integers) else nearest_float
    _, scale, zero = rounding(np.ascontiguousarray(w.T), grid, grouping)
    return Scales(scale[:, 0], None if zero is None else zero[:, 0].astype(np.float32))


def stored(scales: Scales, grouping: Grouping) -> Scales:
    """With scales of the type that the grouping stores, infinite where it has no such number."""
    # Powers of two have neither a sign nor 0.
    exact = np.maximum(scales.scale, _SMALLEST_POWER) if grouping.scale == "e8m0" else scales.scale
    with np.errstate(over="ignore"):
        return Scales(exact.astype(NUMPY_DTYPES[grouping.scale]), scales.zero)


def _is_lopsided(grid: Grid) -> bool:
    """Whether one sign reaches further than the other, so that scales of both signs differ."""
    return isinstance(grid, Integers) and grid.zero - grid.lowest != grid.highest - grid.zero


def _error(w: Array, importance: Array, grid: Grid, scales: Scales) -> Array:
    """f32 [M], infinite where the scale is."""
    values = _nearest(w, scales, grid)
    with np.errstate(invalid="ignore"):
        values *= scales.scale.astype(np.float32)
    values -= w
    np.square(values, out=values)
    error: Array = importance @ values
    error[np.isnan(error)] = np.inf
    return error


def _fit(w: Array, weighted: Array, importance: Array, grid: Grid, scales: Scales) -> tuple[Scales, Array]:
    """The exact scales (and zero points) that fit the codes of `scales` best, and what they take off the error [M]."""
    values = _nearest(w, scales, grid)
    along = np.einsum("gm,gm->m", weighted, values)
    zero = scales.zero
    if zero is not None:
        assert isinstance(grid, Integers)
        # A line through (value, weight): where it crosses 0 is how far the zero point is off.
        total, mean_w, mean_v = importance.sum(), weighted.sum(axis=0), importance @ values
        square = importance @ np.square(values)
        slope = _quotient(total * along - mean_w * mean_v, total * square - mean_v * mean_v)
        shift = np.rint(_quotient(slope * mean_v - mean_w, slope * total))
        moved = np.clip(zero + shift, grid.lowest, grid.highest)
        values -= moved - zero
        along -= (moved - zero) * mean_w
        zero = moved
    np.square(values, out=values)
    square = importance @ values
    return Scales(_quotient(along, square), zero), _quotient(along * along, square)


def _quotient(a: Array, b: Array) -> Array:
    """a / b, 0 where b is 0."""
    found: Array = np.divide(a, b, out=np.zeros_like(a), where=b != 0)
    return found
