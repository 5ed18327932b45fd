"""quantise: give each weight the format it is stored in.

    linear(%x, %w)  ->  linear(%x, quantize(%w) {"format": "int4-g32"})

The language model head (the product that is the result `logits`) and the embedding (a gather from a weight) have their
own formats, and so has each weight that is named. What a checkpoint has in codes can have the format that keeps these.
The router's weight stays float32: one wrong expert costs more than all its rounding saves. So does what weighs the
heads of an indexer, which is as small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Graph, Value, is_weight, topological_order
from dsv3c.compiler.core.weight_names import EMBEDDING, HEAD, weight_name
from dsv3c.compiler.formats.table import WeightFormat

# Operation -> positions of its operands that are matrices [..., N, K] multiplied along K.
MATRIX_OPERANDS: Mapping[str, tuple[int, ...]] = {
    "linear": (1,),
    "head_linear": (1,),
    "moe_gate_up": (2,),
    "moe_down": (3,),
    "mla_materialized": (3, 4),
}
LINEAR, ROUTER = "linear", "router"  # roles, beside HEAD and EMBEDDING
_CHOOSING = ("router", "index_topk")


@dataclass(frozen=True)
class Operand:
    """A weight where it is used. name: see weight_names; a tied embedding that is the head is called so."""

    weight: Value
    user: Value
    position: int
    role: str

    @property
    def name(self) -> str:
        name = weight_name(self.weight)
        return HEAD if self.role == HEAD and name == EMBEDDING else name


@dataclass(frozen=True)
class Quantise:
    """weights, head, embedding: formats by name, see formats.table. named: those of single weights, by their names.
    kept: formats that keep the codes of a checkpoint, by the names of its tensors: before `weights` and `head`."""

    weights: str
    head: str
    embedding: str
    named: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)
    name: ClassVar[str] = "quantise"
    phase: ClassVar[str] = "kernel"

    def run(self, graph: Graph) -> tuple[Graph, int]:
        found: dict[Value, dict[int, str]] = {}
        for operand in operands(graph):
            found.setdefault(operand.user, {})[operand.position] = self._format(operand)

        def visit(value: Value, original: Value) -> Value:
            return _quantised(value, found[original]) if original in found else value

        return graph.map(visit), len(found)

    def _format(self, operand: Operand) -> str:
        if operand.role == ROUTER:
            return "float32"
        if operand.name in self.named:
            return self.named[operand.name]
        if operand.role == EMBEDDING:
            return self.embedding
        return keeping_format(operand.weight, self.kept) or (self.head if operand.role == HEAD else self.weights)


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


def operands(graph: Graph) -> Iterator[Operand]:
    """The weights of a graph that has none in a format yet, in the order of their use."""
    users, results, memo = graph.users(), dict(graph.results), dict[Value, bool]()
    for value in users:
        if value.op == "take" and is_weight(value.inputs[0], memo):
            yield Operand(value.inputs[0], value, 0, EMBEDDING)
        for position in MATRIX_OPERANDS.get(value.op, ()):
            yield Operand(value.inputs[position], value, position, _role(value, users, results))


def _role(value: Value, users: Mapping[Value, list[Value]], results: Mapping[str, Value]) -> str:
    if value == results.get("logits"):
        return HEAD
    return ROUTER if any(user.op in _CHOOSING for user in users[value]) else LINEAR


def _quantised(value: Value, formats: Mapping[int, str]) -> Value:
    inputs = list(value.inputs)
    for position, format in formats.items():
        inputs[position] = ops.apply("quantize", (inputs[position],), {"format": format})
    return ops.apply(value.op, tuple(inputs), value.attrs)
