"""fuse-router: choosing experts and weighing them become two operations on the router's logits.

    %s = sigmoid(%logits); … top_k(…)             ->  %ids = router(%logits, %bias) {"n_group": 8, "top_k": 8, …}
    mul(div(take_along(%s, %ids), sum), scale)    ->  router_weights(%logits, %ids) {"scale": 2.5, …}

Sigmoid scores with a correction bias (DeepSeek-V3) and softmax scores (DeepSeek-V2), with and without groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Attr, Graph, Value
from dsv3c.compiler.core.pattern import Match, P, Pattern
from dsv3c.compiler.core.rewrite import Rule, rewrite_graph

logits = P.any("logits")
scores = P.either(P.sigmoid(logits, name="scores"), P.softmax(logits, name="scores"))
choice = P.either(P.add(scores, P.param(name="bias")), scores)
grouped = P.reshape(choice, name="grouped")
best = P.either(
    P.sum(P.take_along(grouped, P.top_k(grouped, k=2)), axis=-1, keepdims=False, name="best"),
    P.max(grouped, axis=-1, keepdims=False, name="best"),
)
kept = P.reshape(P.put_along(P.top_k(best, name="groups"), P.const(data=1.0)), name="kept")
within_groups = P.reshape(P.where(P.cast(kept, dtype="bool"), grouped, P.const(data=float("-inf"))))
ids = P.either(P.router(logits, name="ids"), P.router(logits, P.any("bias"), name="ids"))
picked = P.take_along(scores, ids)
total = P.sum(picked, axis=-1, keepdims=True, name="total")
normalised = P.div(picked, P.add(total, P.const(data=1e-20)))  # what the definition of router_weights adds


class Choose(Rule):
    pattern: ClassVar[Pattern] = P.top_k(P.either(within_groups, choice), name="ids")

    def check(self, match: Match) -> str | None:
        logits, bias = match["logits"], match.get("bias")
        if len(logits.shape) != 2 or match["ids"].shape[0] != logits.shape[0]:
            return f"{match['ids']!r} does not pick from each row of {logits!r}"
        if bias is not None and bias.shape != logits.shape[1:]:
            return f"{bias!r} is not one number an expert"
        if match.get("groups") is None or match["kept"].shape == (logits.shape[0], match["grouped"].shape[1], 1):
            return None
        return f"{match['kept']!r} is not one mark a group"

    def rewrite(self, match: Match) -> Value:
        groups = match.get("groups")
        attrs: dict[str, Attr] = {
            "n_group": 1 if groups is None else match["grouped"].shape[-2],
            "topk_group": 1 if groups is None else groups.attrs["k"],
            "top_k": match["ids"].attrs["k"],
            "scoring": match["scores"].op,
            "group_score": "max" if groups is not None and match["best"].op == "max" else "top2",
        }
        bias = match.get("bias")
        return ops.apply("router", (match["logits"],) if bias is None else (match["logits"], bias), attrs)


class WeighScaled(Rule):
    pattern: ClassVar[Pattern] = P.mul(P.either(normalised, picked), P.const(data=float, name="scale"))

    def rewrite(self, match: Match) -> Value:
        attrs: dict[str, Attr] = {
            "scoring": match["scores"].op,
            "norm_topk_prob": match.get("total") is not None,
            "scale": match.scalar("scale"),
        }
        return ops.apply("router_weights", (match["logits"], match["ids"]), attrs)


class WeighNormalised(WeighScaled):
    """Where routed_scaling_factor is 1, its product is simplified away."""

    pattern: ClassVar[Pattern] = normalised


class WeighPicked(WeighScaled):
    pattern: ClassVar[Pattern] = picked


@dataclass(frozen=True)
class FuseRouter:
    name: ClassVar[str] = "fuse-router"
    phase: ClassVar[str] = "fuse"

    def run(self, graph: Graph) -> tuple[Graph, int]:
        # One walk a rule, largest pattern first: each of the later ones is a part of the one before.
        total = 0
        for rule in (Choose(), WeighScaled(), WeighNormalised(), WeighPicked()):
            graph, count = rewrite_graph(graph, (rule,), self.name)
            total += count
        return graph, total
