"""quantise: give each weight the format it is stored in.

    linear(%x, %w)  ->  linear(%x, quantize(%w) {"format": "int4-g32"})

The language model head (the product that is the result `logits`) and the embedding (a gather from a weight) have their
own formats. The router's weight stays float32: one wrong expert costs more than all its rounding saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Graph, Value, is_weight

# Operation -> positions of its operands that are matrices [..., N, K] multiplied along K.
MATRIX_OPERANDS: Mapping[str, tuple[int, ...]] = {
    "linear": (1,),
    "head_linear": (1,),
    "moe_gate_up": (2,),
    "moe_down": (3,),
    "mla_materialized": (3, 4),
}


@dataclass(frozen=True)
class Quantise:
    """weights, head, embedding: formats by name, see formats.table."""

    weights: str
    head: str
    embedding: str
    name: ClassVar[str] = "quantise"
    phase: ClassVar[str] = "kernel"

    def run(self, graph: Graph) -> tuple[Graph, int]:
        users, results = graph.users(), dict(graph.results)
        count = 0

        def visit(value: Value, original: Value) -> Value:
            nonlocal count
            if value.op == "take" and is_weight(value.inputs[0]):
                count += 1
                return _quantised(value, (0,), self.embedding)
            if value.op not in MATRIX_OPERANDS:
                return value
            count += 1
            return _quantised(value, MATRIX_OPERANDS[value.op], self._format(original, users, results))

        return graph.map(visit), count

    def _format(self, value: Value, users: Mapping[Value, list[Value]], results: Mapping[str, Value]) -> str:
        if value == results.get("logits"):
            return self.head
        return "float32" if any(user.op == "router" for user in users[value]) else self.weights


def _quantised(value: Value, positions: tuple[int, ...], format: str) -> Value:
    inputs = list(value.inputs)
    for position in positions:
        inputs[position] = ops.apply("quantize", (inputs[position],), {"format": format})
    return ops.apply(value.op, tuple(inputs), value.attrs)
