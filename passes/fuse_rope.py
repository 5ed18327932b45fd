"""fuse-rope: rotary embedding becomes one operation that reads a table made once a step.

    %c = cos(angles), %s = sin(angles), %1 = slice(%x) {"step": 2}, %2 = …, concat(…)
        ->  %t = rope_table(%positions, %inv_freq) {"scale": 1.0};  rope(%x, %t) {"interleave": true}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsv3c.compiler import ops
from dsv3c.compiler.ir import Graph, Value
from dsv3c.compiler.pattern import Match, P, Pattern
from dsv3c.compiler.rewrite import Rule, rewrite_graph

angles = P.mul(P.reshape(P.cast(P.any("positions"))), P.const(name="inv_freq"))
cos = P.reshape(P.scaled(P.cos(angles), "scale"))
sin = P.reshape(P.scaled(P.sin(angles), "scale"))
x = P.any("x")
first, second = P.slice(x, name="first"), P.slice(x, name="second")


class Rope(Rule):
    pattern: ClassVar[Pattern] = P.concat(
        P.sub(P.mul(first, cos), P.mul(second, sin)), P.add(P.mul(second, cos), P.mul(first, sin)), axis=-1
    )

    def check(self, match: Match) -> str | None:
        if _pairing(match) is not None:
            return None
        return f"{match['first']!r} and {match['second']!r} are neither the halves nor the even and odd columns"

    def rewrite(self, match: Match) -> Value:
        scale = match.scalar("scale")
        table = ops.apply("rope_table", (match["positions"], match["inv_freq"]), {"scale": scale})
        return ops.apply("rope", (match["x"], table), {"interleave": _pairing(match)})


def _pairing(match: Match) -> bool | None:
    """True for (even, odd) columns, False for halves, None for anything else."""
    size = match["x"].shape[-1]
    reads = [
        (value.attrs["start"], value.attrs["stop"], value.attrs.get("step", 1))
        for value in (match["first"], match["second"])
    ]
    assert isinstance(size, int)
    if reads == [(0, size, 2), (1, size, 2)]:
        return True
    return False if reads == [(0, size // 2, 1), (size // 2, size, 1)] else None


@dataclass(frozen=True)
class FuseRope:
    name: ClassVar[str] = "fuse-rope"
    phase: ClassVar[str] = "fuse"

    def run(self, graph: Graph) -> tuple[Graph, int]:
        return rewrite_graph(graph, (Rope(),), self.name)
