"""fuse-rope: rotary embedding becomes one operation that reads a table made once a step.

%c = cos(angles), %s = sin(angles), %1 = slice(%x) {"step": 2}, %2 = …, concat(…)
    ->  %t = rope_table(%positions, %inv_freq) {"scale": 1.0};  rope(%x, %t) {"interleave": true}

concat(rope(slice(%x) {"start": 0, "stop": 4}, %t), slice(%x) {"start": 4, "stop": 8})  ->  rope(%x, %t)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Attr, Graph, Value
from dsv3c.compiler.core.pattern import Match, P, Pattern
from dsv3c.compiler.core.rewrite import Rule, rewrite_graph

angles = P.mul(P.reshape(P.cast(P.any("positions"))), P.const(data=tuple, name="inv_freq"))
cos = P.reshape(P.scaled(P.cos(angles), "cos_scale"), name="cos")
sin = P.reshape(P.scaled(P.sin(angles), "sin_scale"), name="sin")
x = P.any("x")
first, second = P.slice(x, axis=-1, name="first"), P.slice(x, axis=-1, name="second")


class RopePattern(Rule):
    pattern: ClassVar[Pattern] = P.concat(
        P.sub(P.mul(first, cos), P.mul(second, sin)), P.add(P.mul(second, cos), P.mul(first, sin)), axis=-1
    )

    def check(self, match: Match) -> str | None:
        if _columns(match) is None:
            return f"{match['first']!r} and {match['second']!r} are neither the halves nor the even and odd columns"
        if match.scalar("cos_scale") != match.scalar("sin_scale"):
            return f"{match['cos']!r} and {match['sin']!r} are scaled differently"
        first = match["first"].shape
        row = (first[0], *(1 for _ in first[1:-1]), first[-1])
        if match["cos"].shape == match["sin"].shape == row and match["inv_freq"].shape == row[-1:]:
            return None
        return f"{match['cos']!r} and {match['sin']!r} are not one row of angles a token"

    def rewrite(self, match: Match) -> Value:
        columns = _columns(match)
        assert columns is not None
        table = ops.apply("rope_table", (match["positions"], match["inv_freq"]), {"scale": match.scalar("cos_scale")})
        rotated = match["x"]
        if columns.stop - columns.start != rotated.shape[-1]:
            span: dict[str, Attr] = {"axis": -1, "start": columns.start, "stop": columns.stop}
            rotated = ops.apply("slice", (rotated,), span)
        return ops.apply("rope", (rotated, table), {"interleave": columns.step == 2})


class RopeOfFirst(Rule):
    pattern: ClassVar[Pattern] = P.concat(
        P.rope(P.slice(x, axis=-1, name="turned"), P.any("table"), name="rope"),
        P.slice(x, axis=-1, name="rest"),
        axis=-1,
    )

    def check(self, match: Match) -> str | None:
        turned, rest = match.span("turned"), match.span("rest")
        if (turned.start, turned.step, rest.step) == (0, 1, 1) and (rest.start, rest.stop) == (
            turned.stop,
            match["x"].shape[-1],
        ):
            return None
        return f"{match['turned']!r} and {match['rest']!r} are not the two parts of {match['x']!r}"

    def rewrite(self, match: Match) -> Value:
        return ops.apply("rope", (match["x"], match["table"]), {"interleave": match["rope"].attrs["interleave"]})


def _columns(match: Match) -> range | None:
    """The rotated columns of x: with step 2 when the pairs are (even, odd), with step 1 when they are the halves."""
    first, second = match.span("first"), match.span("second")
    if first.step == 2 and second == range(first.start + 1, first.stop, 2) and len(first) == len(second):
        return range(first.start, first.stop, 2)
    if first.step == 1 and second == range(first.stop, first.stop + len(first)):
        return range(first.start, second.stop)
    return None


@dataclass(frozen=True)
class FuseRope:
    name: ClassVar[str] = "fuse-rope"
    phase: ClassVar[str] = "fuse"

    def run(self, graph: Graph) -> tuple[Graph, int]:
        return rewrite_graph(graph, (RopePattern(), RopeOfFirst()), self.name)
