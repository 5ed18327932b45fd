"""quantise: give each weight the format it is stored in.

    linear(%x, %w)  ->  linear(%x, quantize(%w) {"format": "int4-g32"})

The language model head (the product that is the result `logits`) and the embedding (a gather from a weight) have their
own formats. The router's weight stays float32: one wrong expert costs more than all its rounding saves. What a
checkpoint has in codes can have the format that keeps these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Graph, Value, is_weight, topological_order
from dsv3c.compiler.formats.table import WeightFormat

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
    """weights, head, embedding: formats by name, see formats.table. kept: formats that keep the codes of a checkpoint,
    by the names of its tensors; they go before `weights` and `head`."""

    weights: str
    head: str
    embedding: str
    kept: Mapping[str, str] = field(default_factory=dict)
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
        if any(user.op == "router" for user in users[value]):
            return "float32"
        chosen = self.head if value == results.get("logits") else self.weights
        return keeping_format(value.inputs[MATRIX_OPERANDS[value.op][0]], self.kept) or chosen


def keeping_format(weight: Value, kept: Mapping[str, str]) -> str | None:
    """The format that keeps the codes of all tensors a weight is made of, by the format of each; of stacked experts
    alone where there are any, as pieces are cut along them. None when there is none."""
    order = topological_order([weight])
    names = [str(leaf.attrs["name"]) for leaf in order if leaf.op == "param"]
    formats = {kept.get(name) for name in [name for name in names if "*" in name] or names}
    if len(formats) != 1 or (format := formats.pop()) is None:
        return None
    return None if turned(weight) and not WeightFormat.parse(format).keeps_fp8 else format  # whose blocks are square


def turned(weight: Value) -> bool:
    """Whether columns of the tensors it is made of are rows of it, so that groups of columns lie across."""
    turns = (value for value in topological_order([weight]) if value.op == "transpose")
    return any(value.attrs["axes"][-1] != len(value.shape) - 1 for value in turns)  # type: ignore[index]


def _quantised(value: Value, positions: tuple[int, ...], format: str) -> Value:
    inputs = list(value.inputs)
    for position in positions:
        inputs[position] = ops.apply("quantize", (inputs[position],), {"format": format})
    return ops.apply(value.op, tuple(inputs), value.attrs)
