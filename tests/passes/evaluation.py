"""Whether two graphs mean the same: both evaluated in numpy on the same random inputs and weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsv3c.compiler.core.ir import Graph, parse_graph
from dsv3c.compiler.core.verifier import verify
from dsv3c.compiler.driver import evaluation


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
    made = evaluation.MadeUp.of(graph, seed)
    return {str(value.attrs["name"]): made(value) for value in graph.values() if value.op in ("input", "param")}


def results(graph: Graph, given: dict[str, Any]) -> dict[str, Any]:
    return evaluation.results(graph, lambda value: given[str(value.attrs["name"])])


def assert_same_meaning(before: Graph, after: Graph, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    assert [name for name, _ in before.results] == [name for name, _ in after.results]
    for seed in range(3):
        given = leaves(before, seed)
        expected, found = results(before, given), results(after, given)
        for name, array in expected.items():
            np.testing.assert_allclose(
                found[name].astype(np.float32), array.astype(np.float32), rtol, atol, err_msg=name
            )
