"""Whether two graphs compute the same: both evaluated in numpy, for a small step, on the same random values."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.caches import SLOTS
from dsv3c.compiler.core.ir import Graph, Value, dim_size
from dsv3c.compiler.errors import NotEvaluableError
from dsv3c.compiler.formats.coded_rows import CodedRows
from dsv3c.compiler.formats.elements import NUMPY_DTYPES, Array
from dsv3c.compiler.options import PAGE_SIZE

_PAGES = np.array([[5, 1, 2], [0, 4, 3]], np.int32)
_SIZES = {"T": 4, "R": 2, "S": _PAGES.shape[0], "P": _PAGES.shape[1]}
_FLOATS = ("f32", "f16", "bf16")


class Difference(NamedTuple):
    """Of one result: the largest difference, as a part of the largest value before, and where it is."""

    name: str
    part: float
    at: tuple[int, ...]


@dataclass(frozen=True)
class MadeUp:
    """The value of a leaf: by its name and the seed, so that it need not be kept. Raises NotEvaluableError for a dtype
    or dim that has none.

    Numbers are normal, those of a matrix of weights small enough for sums of products to stay near 1. What numbers rows
    is 0 or 1, so that it numbers rows of anything; what a step has is the small step's. Inputs of 16 or 8 bits, which
    caches are, have 32: else results would differ by what is rounded the other way for a difference in the seventh
    digit.
    """

    page_size: int = PAGE_SIZE
    seed: int = 0

    @classmethod
    def of(cls, graph: Graph, seed: int = 0) -> MadeUp:
        """With the size of a page as the operations of `graph` have it."""
        sizes = (value.attrs.get("page_size") for value in graph.values())
        return cls(next((size for size in sizes if isinstance(size, int)), PAGE_SIZE), seed)

    def __call__(self, leaf: Value) -> Array:
        try:
            shape = tuple(dim_size(dim, _SIZES | {SLOTS: _PAGES.size * self.page_size}) for dim in leaf.shape)
            rounded = leaf.op == "input" and (leaf.dtype in _FLOATS or CodedRows.of_type(leaf.dtype) is not None)
            dtype = NUMPY_DTYPES["f32" if rounded else leaf.dtype]
        except KeyError as error:
            raise NotEvaluableError(reason=f"values of type {leaf.type} cannot be made up") from error
        name = str(leaf.attrs["name"])
        step = self._step().get(name)
        if leaf.op == "input" and step is not None and (step.shape, step.dtype) == (shape, dtype):
            return step
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        if not rounded and leaf.dtype not in _FLOATS:
            return rng.integers(0, 2, shape).astype(dtype)
        scale = max(1, shape[-1]) ** -0.5 if leaf.op == "param" and len(shape) > 1 else 1.0
        return (rng.standard_normal(shape, np.float32) * np.float32(scale)).astype(dtype)

    def _step(self) -> dict[str, Array]:
        """Two sequences, of which the first has rows in the cache from earlier steps."""
        return {
            "tokens": np.array([3, 0, 6, 2], np.int32),
            "positions": np.array([self.page_size + 2, self.page_size + 3, 0, 1], np.int32),
            "sequence": np.array([0, 0, 1, 1], np.int32),
            "page_table": _PAGES,
            "rows": np.array([1, 3], np.int32),
        }


def results(graph: Graph, given: Callable[[Value], Array]) -> dict[str, Array]:
    """What the graph computes, by name of the result. Raises NotEvaluableError."""
    try:
        found = ops.evaluate([value for _, value in graph.results], given)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # of ops, and of numpy
        raise NotEvaluableError(reason=f"{type(error).__name__}: {error}") from error
    return {name: array for (name, _), array in zip(graph.results, found, strict=True)}


def differences(before: Graph, after: Graph, seed: int = 0) -> list[Difference]:
    """How the results differ, in the order of the first graph. Raises NotEvaluableError."""
    names = [[name for name, _ in graph.results] for graph in (before, after)]
    if names[0] != names[1]:
        raise NotEvaluableError(reason=f"the results are {', '.join(names[0])} before, {', '.join(names[1])} after")
    given = MadeUp.of(before, seed)
    expected, found = results(before, given), results(after, given)
    return [_difference(name, expected[name], found[name]) for name in names[0]]


def _difference(name: str, expected: Any, found: Any) -> Difference:
    if np.shape(expected) != np.shape(found):
        raise NotEvaluableError(reason=f"{name} is {np.shape(expected)} before, {np.shape(found)} after")
    wanted, got = (np.asarray(array).astype(np.float64) for array in (expected, found))
    with np.errstate(invalid="ignore"):
        apart = np.where(wanted == got, 0, np.abs(wanted - got))
    apart[np.isnan(wanted) & np.isnan(got)] = 0
    apart[np.isnan(apart)] = np.inf
    if not apart.size:
        return Difference(name, 0.0, ())
    at = np.unravel_index(np.argmax(apart), apart.shape)
    largest = np.abs(wanted[np.isfinite(wanted)]).max(initial=0)
    part = float(apart[at] / largest) if largest else float(apart[at])
    return Difference(name, part, tuple(map(int, at)))
