"""Caches: the inputs of a graph that have a row for each of N slots, in which tokens stay from step to step.

The type says of what elements a row is and how wide; each cache has its own. The name says whose it is: cache.LAYER, or
cache.LAYER.PART for a further one of that layer. All share the pages of a sequence, so a token has one slot in all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.core.ir import Graph, TensorType, Value, dim_product, dim_size
from dsv3c.compiler.core.storage import plain
from dsv3c.compiler.formats.coded_rows import CodedRows
from dsv3c.compiler.formats.elements import NUMPY_DTYPES

SLOTS = "N"
_PREFIX = "cache."


@dataclass(frozen=True)
class Cache:
    """name: of the input. type: [N, …], of which what is behind N is a slot, a token's row."""

    name: str
    type: TensorType

    @property
    def stored(self) -> TensorType:
        """The plain array that it lies in memory as: `type` itself, or the bytes of coded rows."""
        return plain(self.type)

    @property
    def codes(self) -> str:
        """What its rows are coded in, int8 or fp8; empty where they are numbers."""
        coded = CodedRows.of_type(self.type.dtype)
        return coded.codes if coded else ""

    @property
    def format(self) -> str:
        """What people call it: int8, fp8, or the element type."""
        return self.codes or self.dtype

    @property
    def array_dtype(self) -> np.dtype[Any]:
        """Of a numpy array that the evaluation is given: an element is a whole row where rows are coded."""
        coded = CodedRows.of_type(self.type.dtype)
        return coded.array_dtype(self.width) if coded else np.dtype(NUMPY_DTYPES[self.type.dtype])

    def zeros(self, slots: int) -> NDArray[Any]:
        """The array of so many slots, all zeros: [slots, …], of coded rows [slots]."""
        rows = () if CodedRows.of_type(self.type.dtype) else tuple(dim_size(dim, {}) for dim in self.type.shape[1:])
        return np.zeros((slots, *rows), self.array_dtype)

    @property
    def layer(self) -> int:
        return int(self.name.removeprefix(_PREFIX).partition(".")[0])

    @property
    def part(self) -> str:
        """What it is called among the caches of its layer; "" for the one that has no further name."""
        return self.name.removeprefix(_PREFIX).partition(".")[2]

    @property
    def width(self) -> int:
        """Columns of a slot."""
        return dim_size(dim_product(*self.type.shape[1:]), {})

    @property
    def dtype(self) -> str:
        """The name in plan.json of the element type that it is stored in."""
        return str(NUMPY_DTYPES[self.stored.dtype].name)

    @property
    def stored_width(self) -> int:
        """Elements of that type in a slot."""
        return dim_size(dim_product(*self.stored.shape[1:]), {})

    @property
    def slot_bytes(self) -> int:
        return self.stored_width * int(NUMPY_DTYPES[self.stored.dtype].itemsize)


def cache_name(layer: int, part: str = "") -> str:
    return f"{_PREFIX}{layer}.{part}" if part else f"{_PREFIX}{layer}"


def is_cache(value: Value) -> bool:
    return value.op == "input" and value.shape[:1] == (SLOTS,)


def cache_of(value: Value) -> Cache:
    """The cache that an input is, for which `is_cache` holds."""
    return Cache(str(value.attrs["name"]), value.type)


def caches_of(graphs: Iterable[Graph]) -> tuple[Cache, ...]:
    """The caches of all graphs, each once, by layer and part."""
    found = {cache_of(value) for graph in graphs for value in graph.values() if is_cache(value)}
    return tuple(sorted(found, key=lambda cache: (cache.layer, cache.part)))
