"""fuse-index: an indexer becomes two operations, one that writes its keys and one that chooses positions.

    scatter_rows(%cache, token_slots(…), reshape(rope(reshape(layer norm of %k), %t)))
        ->  index_write(%cache, %k, %weight, %bias, %t, …)

    top_k_mask(where(context_mask(…), sum(mul(relu(matmul(%q, %keys)), %weights)), -inf)) {"k": 2048}
        ->  chosen_mask(index_topk(%q, %weights, %cache, …) {"k": 2048}, …)

What reads the mask takes the chosen positions from it (fuse-mla), also in layers that share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Graph, Value
from dsv3c.compiler.core.pattern import Match, P, Pattern
from dsv3c.compiler.core.rewrite import Rule, rewrite_graph

positions, sequence, page_table, cache = map(P.any, ("positions", "sequence", "page_table", "cache"))

k = P.any("k")
normed = P.add(
    P.rms_norm(P.sub(k, P.mean(k, axis=-1, keepdims=True)), P.any("weight"), name="norm"),
    P.any("bias"),
)
turned = P.reshape(P.rope(P.reshape(normed), P.any("table"), name="rope"), name="row")

q, weights = P.any("q"), P.any("weights")
keys = P.take(cache, P.context_slots(page_table, name="slots"))
product = P.relu(
    P.matmul(P.transpose(q, axes=(1, 0, 2)), P.transpose(keys, axes=(1, 0))),
)
score = P.sum(
    P.mul(product, P.reshape(P.transpose(weights, axes=(1, 0)), name="column")), axis=0, keepdims=False, name="score"
)
visible = P.context_mask(positions, sequence, page_table, name="mask")


class Write(Rule):
    pattern: ClassVar[Pattern] = P.scatter_rows(
        cache, P.token_slots(positions, sequence, page_table, name="slots"), turned
    )

    def check(self, match: Match) -> str | None:
        if match["bias"].shape != match["k"].shape[-1:]:
            return f"{match['bias']!r} is no bias of the last axis of {match['k']!r}"
        if match["row"].shape == match["k"].shape and match["rope"].shape[:2] == (match["k"].shape[0], 1):
            return None
        return f"{match['rope']!r} does not rotate the key as one head"

    def rewrite(self, match: Match) -> Value:
        paging = (match["positions"], match["sequence"], match["page_table"])
        return ops.apply(
            "index_write",
            (match["cache"], match["k"], match["weight"], match["bias"], match["table"], *paging),
            {
                "eps": match["norm"].attrs["eps"],
                "interleave": match["rope"].attrs["interleave"],
                "page_size": match["slots"].attrs["page_size"],
            },
        )


class Choose(Rule):
    pattern: ClassVar[Pattern] = P.top_k_mask(P.where(visible, score, P.const(data=float("-inf"))), name="best")

    def check(self, match: Match) -> str | None:
        tokens, heads = match["weights"].shape
        if match["column"].shape != (heads, tokens, 1) or match["q"].shape[:2] != (tokens, heads):
            return f"{match['column']!r} is not a weight for each head of {match['q']!r}"
        if match["mask"].attrs["page_size"] != match["slots"].attrs["page_size"]:
            return f"{match['mask']!r} and {match['slots']!r} differ in the page size"
        return None

    def rewrite(self, match: Match) -> Value:
        page_size = match["slots"].attrs["page_size"]
        paging = (match["positions"], match["sequence"], match["page_table"])
        attrs = {"k": match["best"].attrs["k"], "page_size": page_size}
        chosen = ops.apply("index_topk", (match["q"], match["weights"], match["cache"], *paging), attrs)
        return ops.apply("chosen_mask", (chosen, *paging[1:]), {"page_size": page_size})


@dataclass(frozen=True)
class FuseIndex:
    name: ClassVar[str] = "fuse-index"
    phase: ClassVar[str] = "fuse"

    def run(self, graph: Graph) -> tuple[Graph, int]:
        return rewrite_graph(graph, (Write(), Choose()), self.name)
