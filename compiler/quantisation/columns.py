"""A matrix while methods round it: column after column, so that each column lies in one piece."""

from __future__ import annotations

import numpy as np

from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.compiler.formats.grids import Grid
from dsv3c.compiler.formats.grouping import Grouping
from dsv3c.compiler.formats.rounding import Rounded
from dsv3c.compiler.quantisation import scales
from dsv3c.compiler.quantisation.inputs import Array
from dsv3c.compiler.quantisation.scales import Scales


class Columns:
    """weights f32 [K, N]: what is to be rounded, transposed. error f32 [K, N]: weights - what their codes stand for.

    A column is rounded with the scales of its group, which are set before. groups: those that have columns; behind them
    padding may have more.
    """

    def __init__(self, w: Array, grid: Grid, grouping: Grouping) -> None:
        self.grid, self.grouping = grid, grouping
        n, self.k = w.shape
        self.weights = np.ascontiguousarray(w.T, np.float32)
        self.size = grouping.size or self.k
        self.groups = -(-self.k // self.size)
        self.error = np.zeros_like(self.weights)
        self._step = np.zeros((self.groups, n), np.float32)  # the scales, and 1 / them or 0
        self._inverse = np.zeros_like(self._step)
        self.codes = np.full((grouping.padded_k(self.k), n), grid.zero, np.uint8)
        stored = grouping.count(self.k)
        self.scale = np.zeros((stored, n), NUMPY_DTYPES[grouping.scale])
        self.zero = None if grouping.zero is None else np.full((stored, n), grid.zero, np.float32)

    def span(self, group: int) -> slice:
        """The columns of a group."""
        return slice(group * self.size, min((group + 1) * self.size, self.k))

    def scales(self, group: int) -> Scales:
        return Scales(self.scale[group], None if self.zero is None else self.zero[group])

    def set(self, group: int, found: Scales) -> None:
        self.scale[group] = found.scale
        self._step[group], self._inverse[group] = found.scale, scales.inverse(found.scale)
        if self.zero is not None:
            self.zero[group] = found.zero

    def search(self, group: int, target: Array, importance: Array) -> None:
        """Set the scales of a group to those that are best for `target` [G, N]; importance [G]."""
        self.set(group, scales.search(target, importance, self.grid, self.grouping))

    def round(self, columns: slice | int, target: Array) -> None:
        """The codes of columns of one group nearest to `target` [..., N], and their errors."""
        group = (columns.start if isinstance(columns, slice) else columns) // self.size
        zero = None if self.zero is None else self.zero[group]
        values, self.codes[columns] = scales.rounded(target * self._inverse[group], zero, self.grid)
        values *= self._step[group]
        np.subtract(self.weights[columns], values, out=self.error[columns])

    def rounded(self) -> Rounded:
        """As formats have it. Columns of the padding stand for 0."""
        codes, zero = self.codes, None
        if self.zero is not None:
            zero = np.ascontiguousarray(self.zero.T).astype(NUMPY_DTYPES[str(self.grouping.zero)])
            owners = np.minimum(np.arange(self.k, len(codes)) // self.size, len(self.zero) - 1)
            codes[self.k :] = zero.T[owners]
        return Rounded(np.ascontiguousarray(codes.T), np.ascontiguousarray(self.scale.T), zero)
