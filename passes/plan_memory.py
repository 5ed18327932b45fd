"""plan-memory: give every result a place in one arena, sized for the largest step.

    %7: f32[T, 256] = linear(…)  ->  %7: f32[T, 256] = linear(…) {"arena": [4096]}

`arena` holds a byte offset for each component of the result (a quantised activation has three), then one for the
scratch memory of the operation if it has any. Results that are never alive together share bytes. Views and in-place
results live where their operand lives; inputs and weights have memory of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from dsv3c.compiler.core.ir import Graph, Value, is_weight
from dsv3c.compiler.core.storage import aligned, components, memory_owner


@dataclass
class Lifetime:
    """Bytes wanted by one result from program point `first` to `last`."""

    value: Value
    nbytes: int
    first: int
    last: int
    offset: int = 0


@dataclass(frozen=True)
class PlanMemory:
    """bounds: largest size of each symbolic dim. scratch: bytes of working memory that a kernel wants for a value."""

    bounds: Mapping[str, int]
    scratch: Callable[[Value], int]
    name: ClassVar[str] = "plan-memory"
    phase: ClassVar[str] = "kernel"

    def run(self, graph: Graph) -> tuple[Graph, int]:
        results, scratches = self._blocks(graph)
        place([*results.values(), *scratches.values()])

        def visit(value: Value, original: Value) -> Value:
            if original not in results:
                return value
            offsets, at = [], results[original].offset
            for component in components(value.type, self.bounds):
                offsets.append(at)
                at += aligned(component.nbytes)
            if original in scratches:
                offsets.append(scratches[original].offset)
            return value.replace(attrs={**value.attrs, "arena": tuple(offsets)})

        return graph.map(visit), len(results)

    def _blocks(self, graph: Graph) -> tuple[dict[Value, Lifetime], dict[Value, Lifetime]]:
        """A block for each result, alive until its last reader, and for each scratch, alive for one operation."""
        memo: dict[Value, bool] = {}
        order = [value for value in graph.values() if not is_weight(value, memo)]
        results: dict[Value, Lifetime] = {}
        scratches: dict[Value, Lifetime] = {}
        for point, value in enumerate(order):
            for source in value.inputs:
                block = results.get(memory_owner(source))
                if block:
                    block.last = point
            if memory_owner(value) != value or value.op == "input":
                continue
            nbytes = sum(aligned(component.nbytes) for component in components(value.type, self.bounds))
            results[value] = Lifetime(value, nbytes, point, point)
            if self.scratch(value):
                scratches[value] = Lifetime(value, aligned(self.scratch(value)), point, point)
        for _, value in graph.results:
            block = results.get(memory_owner(value))
            if block:
                block.last = len(order)
        return results, scratches


def place(blocks: list[Lifetime]) -> None:
    """Largest first, each at the lowest offset that is free during its life (greedy by size, arXiv 2001.03288)."""
    placed: list[Lifetime] = []
    for block in sorted(blocks, key=lambda block: -block.nbytes):
        rivals = [other for other in placed if other.first <= block.last and block.first <= other.last]
        block.offset = 0
        for other in sorted(rivals, key=lambda other: other.offset):
            if block.offset + block.nbytes <= other.offset:
                break
            block.offset = max(block.offset, other.offset + other.nbytes)
        placed.append(block)
