"""Activations of all sequences: in memory up to a bound, beyond it in a file that has no name."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np

from dsv3c.compiler.core.ir import Value, dim_size
from dsv3c.compiler.core.ops.table import Array

MEMORY_BYTES = 1 << 30


class Store:
    """The rows of values, those of all sequences one behind the other.

    bounds: the sizes of the symbolic dims for each sequence. folder: where files are made, None for the system's place.
    """

    def __init__(self, bounds: Sequence[Mapping[str, int]], folder: Path | None) -> None:
        self._bounds = bounds
        self._folder = folder
        self._left = MEMORY_BYTES
        self._arrays: dict[Value, Array] = {}

    def make(self, value: Value, width: Sequence[int], dtype: np.dtype[np.generic]) -> Array:
        """Rows [rows, *width] for all sequences, not filled."""
        shape = (self._starts(value)[-1], *width)
        nbytes = prod(shape) * dtype.itemsize
        if nbytes <= self._left:
            array = np.empty(shape, dtype)
            self._left -= nbytes
        else:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                array = np.memmap(file, dtype, "w+", shape=shape)
        self._arrays[value] = array
        return array

    def put(self, value: Value, sequence: int, rows: Array) -> None:
        """The rows of one sequence. The first rows of a value must be put before threads put others."""
        array = self._arrays.get(value)
        if array is None:
            array = self.make(value, rows.shape[1:], rows.dtype)
        array[self.span(value, sequence)] = rows

    def rows(self, value: Value) -> Array:
        return self._arrays[value]

    def of(self, value: Value, sequence: int) -> Array:
        return self._arrays[value][self.span(value, sequence)]

    def drop(self, value: Value) -> None:
        array = self._arrays.pop(value, None)
        if array is not None and not isinstance(array, np.memmap):
            self._left += array.nbytes

    def span(self, value: Value, sequence: int) -> slice:
        starts = self._starts(value)
        return slice(starts[sequence], starts[sequence + 1])

    def _starts(self, value: Value) -> list[int]:
        sizes = [dim_size(value.shape[0], bounds) for bounds in self._bounds]
        return [sum(sizes[:end]) for end in range(len(sizes) + 1)]
