"""fuse-rms-norm: the six primitives of RMSNorm become one operation.

%2 = mean(mul(%x, %x)); %5 = mul(mul(%x, rsqrt(add(%2, %eps))), %w)   ->   %5 = rms_norm(%x, %w) {"eps": 1e-06}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Graph, Value
from dsv3c.compiler.core.pattern import Match, P, Pattern
from dsv3c.compiler.core.rewrite import Rule, rewrite_graph

x, weight = P.any("x"), P.any("weight")


class RmsNormPattern(Rule):
    pattern: ClassVar[Pattern] = P.mul(
        P.mul(x, P.rsqrt(P.add(P.mean(P.mul(x, x), axis=-1, keepdims=True), P.const(data=float, name="eps")))), weight
    )

    def check(self, match: Match) -> str | None:
        if match["weight"].shape == match["x"].shape[-1:]:
            return None
        return f"{match['weight']!r} does not scale the last axis of {match['x']!r}"

    def rewrite(self, match: Match) -> Value:
        return ops.apply("rms_norm", (match["x"], match["weight"]), {"eps": match.scalar("eps")})


@dataclass(frozen=True)
class FuseRmsNorm:
    name: ClassVar[str] = "fuse-rms-norm"
    phase: ClassVar[str] = "fuse"

    def run(self, graph: Graph) -> tuple[Graph, int]:
        return rewrite_graph(graph, (RmsNormPattern(),), self.name)
