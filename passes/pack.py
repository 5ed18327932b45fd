"""pack: put each quantised weight into the target's layout, and quantise the activations that meet integer weights.

    linear(%x, quantize(%w))
        ->  linear(quantize_rows(%x) {"group": 32}, pack(quantize(%w)) {"layout": "rows16"})

Several readers of one activation share its quantised form. Latents that mla_materialized reads from the cache are
rounded inside it: the group is an attribute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Graph, Value
from dsv3c.compiler.core.ops.weight import format_of

# Operations whose first operand is multiplied with the weight and may be int8.
INTEGER_PRODUCTS = ("linear", "head_linear", "moe_gate_up", "moe_down")


@dataclass(frozen=True)
class Pack:
    """layout: name of the target's layout. integer_activations: the target multiplies int8 by integer weights."""

    layout: str
    integer_activations: bool
    name: ClassVar[str] = "pack"
    phase: ClassVar[str] = "kernel"

    def run(self, graph: Graph) -> tuple[Graph, int]:
        count = 0

        def visit(value: Value, _: Value) -> Value:
            nonlocal count
            weights = [index for index, source in enumerate(value.inputs) if source.op == "quantize"]
            if not weights or value.op == "take":
                return value
            count += 1
            return self._packed(value, weights)

        return graph.map(visit), count

    def _packed(self, value: Value, weights: list[int]) -> Value:
        inputs = list(value.inputs)
        format = format_of(inputs[weights[0]].type)
        for index in weights:
            inputs[index] = ops.apply("pack", (inputs[index],), {"layout": self.layout})
        attrs, rounded = dict(value.attrs), {"group": format.grouping.activations}
        if self.integer_activations and format.integer_products:
            if value.op in INTEGER_PRODUCTS:
                inputs[0] = ops.apply("quantize_rows", (inputs[0],), rounded)
            if value.op == "mla_materialized":
                attrs |= rounded
        return ops.apply(value.op, tuple(inputs), attrs)
