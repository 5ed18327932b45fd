"""Codes of a checkpoint in a format of ours: kept as they are where the format can hold them, without rounding again.

A format holds them when each of its groups has one scale (and one zero, where groups have zeros of their own), and when
its grid has all their numbers. So groups of 128 fit groups of 32, and 3 bits fit 4. The float16 scale of a group may
differ from the checkpoint's, which is counted; a row that does not fit is left to be rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.formats import coded, fp8
from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.compiler.formats.grids import E2M1, E4M3, Integers
from dsv3c.compiler.formats.grouping import Grouping
from dsv3c.compiler.formats.rounding import Rounded, chunks
from dsv3c.compiler.formats.table import FORMATS, WeightFormat

Array = NDArray[Any]


@dataclass(frozen=True)
class Coding:
    """How a checkpoint has a matrix: its kind, one of coded.KINDS; `bits` of a code; `group`, the columns of a row that
    share a scale, 0: all of them, None: no neighbours; symmetric: codes stand for as much above zero as below; square:
    rows share them in the same way, so that the transposed matrix is like it."""

    kind: np.dtype[Any]
    bits: int
    group: int | None
    symmetric: bool = True
    square: bool = False

    def __str__(self) -> str:
        number = "e4m3" if self.kind == fp8.CODED else "e2m1" if self.kind == coded.E2M1 else f"int{self.bits}"
        shared = "scattered groups" if self.group is None else f"groups of {self.group}" if self.group else "whole rows"
        return f"{number} in {shared}" + ("" if self.symmetric else ", asymmetric")

    def fits(self, format: WeightFormat) -> bool:
        """Whether `format` holds such codes, apart from what single codes and scales may add."""
        if self.group is None or not format.has_codes or format.grouping.per_tensor:
            return False
        size, grid = format.grouping.size, format.grid
        if (self.group % size if size else self.group) != 0:
            return False
        if self.kind == fp8.CODED:
            return isinstance(grid, E4M3)
        if self.kind == coded.E2M1:
            return isinstance(format.grid, E2M1)
        own_zeros = format.grouping.zero is not None
        return isinstance(grid, Integers) and grid.bits >= self.bits and (own_zeros or self.symmetric)

    def format(self, supported: Callable[[WeightFormat], bool]) -> WeightFormat | None:
        """The smallest format that holds such codes, of those that are `supported`."""
        fitting = [row for row in FORMATS.values() if self.fits(row) and supported(row)]
        return min(fitting, key=lambda row: row.bits_per_weight(), default=None)


@dataclass(frozen=True)
class Loss:
    """What codes of a checkpoint lost in a format: rows that were rounded anew, scales that became others."""

    rows: int = 0
    scales: int = 0

    def __add__(self, other: Loss) -> Loss:
        return Loss(self.rows + other.rows, self.scales + other.scales)


NO_LOSS = Loss()


@dataclass(frozen=True)
class Kept:
    """The codes of rows [N, K] in a format; where `fits` [N] is False they mean nothing. scales: how many are others
    than the checkpoint's."""

    rounded: Rounded
    fits: Array
    scales: int


def keep(w: Array, format: WeightFormat) -> Kept | None:
    """Coded w[N, K] in `format`; None for codes of another kind than the format's, and for fp8, see fp8.keep."""
    if w.dtype == coded.INTEGERS and isinstance(format.grid, Integers):
        return _integers(w, format.grid, format.grouping)
    if w.dtype == coded.E2M1 and isinstance(format.grid, E2M1):
        return _e2m1(w, format)
    return None


def holds(w: Array, format: WeightFormat) -> bool:
    """Whether coded w[..., N, K] need not be rounded for `format`: most of its rows fit."""
    kept = keep(w.reshape(-1, w.shape[-1]), format)
    return kept is not None and 2 * int(np.count_nonzero(kept.fits)) > kept.fits.size


def _integers(w: Array, grid: Integers, grouping: Grouping) -> Kept:
    rows, k = w.shape
    padded, groups = grouping.padded_k(k), grouping.count(k)
    codes, scale = np.empty((rows, padded), np.uint8), np.empty((rows, groups), NUMPY_DTYPES[grouping.scale])
    zero = None if grouping.zero is None else np.empty((rows, groups), NUMPY_DTYPES[grouping.zero])
    fits, others = np.empty(rows, np.bool_), 0
    for chunk in chunks(rows, padded):
        part = _padded(w[chunk], padded).reshape(-1, groups, padded // groups)
        found, exact = part["code"].astype(np.int16), part["scale"][..., 0]
        fit = (part["scale"] == exact[..., None]).all(axis=(1, 2))
        if zero is None:
            found += grid.zero
            found -= part["zero"]
        else:
            zero[chunk] = part["zero"][..., 0]
            fit &= (part["zero"] == part["zero"][..., :1]).all(axis=(1, 2)) & (zero[chunk] <= grid.highest).all(axis=1)
        fit &= ((found >= grid.lowest) & (found <= grid.highest)).all(axis=(1, 2))
        codes[chunk] = found.reshape(-1, padded)
        scale[chunk] = exact
        others += int(np.count_nonzero((scale[chunk].astype(np.float32) != exact)[fit]))
        fits[chunk] = fit
    return Kept(Rounded(codes, scale, zero), fits, others)


def _e2m1(w: Array, format: WeightFormat) -> Kept:
    rows, k = w.shape
    padded, groups = format.padded_k(k), format.scale_groups(k)
    part = np.pad(w, ((0, 0), (0, padded - k)), mode="edge")
    part["code"][:, k:] = format.zero_point
    exponents = part["scale"].reshape(rows, groups, -1)
    fits = (exponents == exponents[..., :1]).all(axis=(1, 2))
    scale = np.ascontiguousarray(exponents[..., 0]).view(NUMPY_DTYPES[format.grouping.scale])
    return Kept(Rounded(np.ascontiguousarray(part["code"]), scale, None), fits, 0)


def _padded(w: Array, columns: int) -> Array:
    """INTEGERS w[N, K] with columns that stand for 0 up to `columns`; the last scale and zero go on."""
    if w.shape[1] == columns:
        return w
    out = np.pad(w, ((0, 0), (0, columns - w.shape[1])), mode="edge")
    out["code"][:, w.shape[1] :] = out["zero"][:, w.shape[1] :]
    return out
