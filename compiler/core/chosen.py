"""Results of a graph that say which experts tokens visit: experts.LAYER, i32 [T, experts a token].

Nothing of a step needs them: they are there to be counted.
"""

from __future__ import annotations

from dsv3c.compiler.core.ir import Graph, Value

_PREFIX = "experts."


def experts_name(layer: int) -> str:
    return f"{_PREFIX}{layer}"


def chosen_experts(graph: Graph) -> dict[int, Value]:
    """Those results, by layer."""
    return {int(name.removeprefix(_PREFIX)): value for name, value in graph.results if name.startswith(_PREFIX)}


def computed(graph: Graph) -> tuple[tuple[str, Value], ...]:
    """All other results."""
    return tuple((name, value) for name, value in graph.results if not name.startswith(_PREFIX))
