"""Whether two graphs mean the same: both evaluated in numpy on the same random inputs and weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Graph, Value, dim_size, parse_graph
from dsv3c.compiler.core.verifier import verify
from dsv3c.compiler.formats.elements import NUMPY_DTYPES

PAGE_SIZE = 4
BOUNDS = {"T": 4, "R": 2, "S": 2, "P": 3, "N": 24}
PAGE_TABLE = np.array([[5, 1, 2], [0, 4, 3]], np.int32)
# Two sequences, of which the first has rows in the cache from earlier steps.
STEP = {
    "tokens": np.array([3, 0, 6, 2], np.int32),
    "positions": np.array([6, 7, 0, 1], np.int32),
    "sequence": np.array([0, 0, 1, 1], np.int32),
    "page_table": PAGE_TABLE,
    "rows": np.array([1, 3], np.int32),
}


def graph(lines: str) -> Graph:
    """A graph from the lines of its body."""
    return parse_graph(f"graph g {{\n{lines}\n}}")


def changed(item: Any, before: Graph, phase: str = "fuse") -> tuple[Graph, int]:
    """Run a pass on a valid graph; what it returns is valid in its phase."""
    verify(before, phase, "the test's own text")
    after, count = item.run(before)
    verify(after, item.phase, item.name)
    return after, count


def leaves(graph: Graph, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    found = {}
    for value in graph.values():
        if value.op in ("input", "param"):
            name = str(value.attrs["name"])
            found[name] = STEP[name] if name in STEP else random_array(value, rng)
    return found


def random_array(value: Value, rng: np.random.Generator) -> Any:
    """Normal floats; integers are small, so that they number rows of anything."""
    shape = tuple(dim_size(dim, BOUNDS) for dim in value.shape)
    dtype = NUMPY_DTYPES[value.dtype]
    return rng.integers(0, 2, shape).astype(dtype) if value.dtype == "i32" else rng.standard_normal(shape).astype(dtype)


def results(graph: Graph, given: dict[str, Any]) -> dict[str, Any]:
    return ops.evaluate_graph(graph, given, given.__getitem__)


def assert_same_meaning(before: Graph, after: Graph, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    assert [name for name, _ in before.results] == [name for name, _ in after.results]
    for seed in range(3):
        given = leaves(before, seed)
        expected, found = results(before, given), results(after, given)
        for name, array in expected.items():
            np.testing.assert_allclose(
                found[name].astype(np.float32), array.astype(np.float32), rtol, atol, err_msg=name
            )
