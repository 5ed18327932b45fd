"""fuse-swiglu: the gate and up projections of a dense MLP become one product, followed by silu(gate) * up.

mul(mul(%g, sigmoid(%g)), %u), %g = linear(%x, %wg), %u = linear(%x, %wu)  ->  swiglu(linear(%x, concat(%wg, %wu)))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Graph, Value
from dsv3c.compiler.core.pattern import Match, P, Pattern
from dsv3c.compiler.core.rewrite import Rule, rewrite_graph

x = P.any("x")
gate = P.linear(x, P.any("w_gate"))


class SwiGlu(Rule):
    pattern: ClassVar[Pattern] = P.mul(P.mul(gate, P.sigmoid(gate)), P.linear(x, P.any("w_up")))

    def check(self, match: Match) -> str | None:
        if match["w_gate"].shape == match["w_up"].shape:
            return None
        return f"{match['w_gate']!r} and {match['w_up']!r} differ in shape"

    def rewrite(self, match: Match) -> Value:
        weight = ops.apply("concat", (match["w_gate"], match["w_up"]), {"axis": 0})
        return ops.apply("swiglu", (ops.apply("linear", (match["x"], weight), {}),), {})


@dataclass(frozen=True)
class FuseSwiglu:
    name: ClassVar[str] = "fuse-swiglu"
    phase: ClassVar[str] = "kernel"

    def run(self, graph: Graph) -> tuple[Graph, int]:
        return rewrite_graph(graph, (SwiGlu(),), self.name)
