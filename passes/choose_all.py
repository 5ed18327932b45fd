"""choose-all: where no context is longer than what an indexer chooses of it, it chooses all of it.

    top_k_mask(where(context_mask(…), %score, -inf)) {"k": 2048}  ->  context_mask(…)

The keys that the indexer writes are still there, its scores are read by nothing. It holds for steps whose contexts have
at most `max_context` tokens, and is for entries that take no others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsv3c.compiler.core.ir import Graph, Value
from dsv3c.compiler.core.pattern import Match, P, Pattern
from dsv3c.compiler.core.rewrite import Rule, rewrite_graph

visible = P.context_mask(P.any("positions"), P.any("sequence"), P.any("page_table"), name="visible")


@dataclass(frozen=True)
class _Choose(Rule):
    max_context: int
    pattern: ClassVar[Pattern] = P.top_k_mask(
        P.where(visible, P.any("score"), P.const(data=float("-inf"))), name="best"
    )

    def check(self, match: Match) -> str | None:
        k = match["best"].attrs["k"]
        if isinstance(k, int) and k >= self.max_context:
            return None
        return f"{match['best']!r} chooses {k} of up to {self.max_context}"

    def rewrite(self, match: Match) -> Value:
        return match["visible"]


@dataclass(frozen=True)
class ChooseAll:
    max_context: int
    name: ClassVar[str] = "choose-all"
    phase: ClassVar[str] = "fuse"

    def run(self, graph: Graph) -> tuple[Graph, int]:
        return rewrite_graph(graph, (_Choose(self.max_context),), self.name)
