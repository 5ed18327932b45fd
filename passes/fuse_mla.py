"""fuse-mla: attention over the latent cache, in one of its two forms, or over what is chosen of it.

All write the cache with one operation:

    scatter_rows(%cache, token_slots(…), concat(rms_norm(%latent, %w), rope(%k_pe, %t)))
        ->  mla_write(%cache, %kv_a, %w, %t, …)

form "absorbed" (decode): kv_b is absorbed into the query and the output, scores are taken in latent space
(DeepSeek-V2, arXiv 2405.04434, section 2.1.2):

    %q = head_linear(%q_nope, W_UK per head, transposed); %o = mla_absorbed(%q, %q_pe, %cache, …); head_linear(%o, W_UV)

form "materialized" (long prefill): keys and values are rebuilt from the latent rows inside the operation:

    mla_materialized(%q_nope, %q_pe, %cache, W_UK, W_UV, …)

Where an indexer has chosen positions, in place of `context_mask` a `chosen_mask`, it is absorbed in both:

    %q = head_linear(…); %o = mla_sparse(%q, %q_pe, %cache, %chosen, …); head_linear(%o, W_UV)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Graph, Value
from dsv3c.compiler.core.pattern import Match, P, Pattern
from dsv3c.compiler.core.rewrite import Rule, rewrite_graph

positions, sequence, page_table, cache = map(P.any, ("positions", "sequence", "page_table", "cache"))

row = P.concat(
    P.rms_norm(P.slice(P.any("kv_a"), axis=-1, name="latent"), P.any("norm_weight"), name="norm"),
    P.reshape(P.rope(P.reshape(P.slice(P.any("kv_a"), axis=-1, name="k_pe")), P.any("table"), name="rope")),
    axis=-1,
)

context = P.take(cache, P.context_slots(page_table, name="slots"), name="context")
kv = P.reshape(P.linear(P.slice(context, axis=-1, name="latent"), P.any("kv_b")), name="kv")
score_nope = P.matmul(
    P.transpose(P.any("q_nope"), axes=(1, 0, 2)), P.transpose(P.slice(kv, axis=-1, name="k_nope"), axes=(1, 2, 0))
)
score_pe = P.matmul(
    P.transpose(P.any("q_pe"), axes=(1, 0, 2)), P.transpose(P.slice(context, axis=-1, name="k_pe"), axes=(1, 0))
)
score = P.mul(P.add(score_nope, score_pe), P.const(data=float, name="scale"))
visible = P.context_mask(positions, sequence, page_table, name="mask")
chosen = P.index_topk(P.any("q"), P.any("weights"), P.any("keys"), positions, sequence, page_table, name="chosen")
mask = P.either(visible, P.chosen_mask(chosen, sequence, page_table, name="mask"))
masked = P.where(mask, score, P.const(data=float("-inf")))
attended = P.matmul(P.softmax(masked), P.transpose(P.slice(kv, axis=-1, name="value"), axes=(1, 0, 2)))


class Write(Rule):
    pattern: ClassVar[Pattern] = P.scatter_rows(
        cache, P.token_slots(positions, sequence, page_table, name="slots"), row
    )

    def check(self, match: Match) -> str | None:
        latent, k_pe = match.span("latent"), match.span("k_pe")
        if latent.step != 1 or k_pe != range(latent.stop, latent.stop + len(k_pe)):
            return f"{match['latent']!r} and {match['k_pe']!r} are not neighbours in {match['kv_a']!r}"
        tokens, heads, *_ = match["rope"].shape
        if tokens == match["k_pe"].shape[0] and heads == 1:
            return None
        return f"{match['rope']!r} does not rotate the key as one head"

    def rewrite(self, match: Match) -> Value:
        start, stop = match.span("latent").start, match.span("k_pe").stop
        kv_a = match["kv_a"]
        if stop - start != kv_a.shape[-1]:
            kv_a = ops.apply("slice", (kv_a,), {"axis": -1, "start": start, "stop": stop})
        paging = (match["positions"], match["sequence"], match["page_table"])
        return ops.apply(
            "mla_write",
            (match["cache"], kv_a, match["norm_weight"], match["table"], *paging),
            {
                "eps": match["norm"].attrs["eps"],
                "interleave": match["rope"].attrs["interleave"],
                "page_size": match["slots"].attrs["page_size"],
            },
        )


@dataclass(frozen=True)
class Attention(Rule):
    form: str
    pattern: ClassVar[Pattern] = P.transpose(attended, axes=(1, 0, 2))

    def check(self, match: Match) -> str | None:
        for whole, first, second in (("kv", "k_nope", "value"), ("context", "latent", "k_pe")):
            width, split = match[whole].shape[-1], match.span(first).stop
            if (match.span(first), match.span(second)) != (range(split), range(split, int(width))):
                return f"{match[first]!r} and {match[second]!r} are not the two parts of {match[whole]!r}"
        if match["kv"].shape[0] != match["context"].shape[0]:
            return f"{match['kv']!r} does not keep the rows of {match['context']!r}"
        if match["mask"].attrs["page_size"] != match["slots"].attrs["page_size"]:
            return f"{match['mask']!r} and {match['slots']!r} differ in the page size"
        return None

    def rewrite(self, match: Match) -> Value:
        paging = (match["positions"], match["sequence"], match["page_table"])
        attrs = {"scale": match.scalar("scale"), "page_size": match["slots"].attrs["page_size"]}
        w_uk, w_uv = _split_kv_b(match)
        chosen = match.get("chosen")
        if self.form == "materialized" and chosen is None:
            operands = (match["q_nope"], match["q_pe"], match["cache"], w_uk, w_uv, *paging)
            return ops.apply("mla_materialized", operands, attrs)
        w_uk = ops.apply("transpose", (w_uk,), {"axes": (0, 2, 1)})
        q_latent = ops.apply("head_linear", (match["q_nope"], w_uk), {})
        attended = (q_latent, match["q_pe"], match["cache"])
        if chosen is None:
            latent = ops.apply("mla_absorbed", (*attended, *paging), attrs)
        else:
            latent = ops.apply("mla_sparse", (*attended, chosen, *paging), attrs)
        return ops.apply("head_linear", (latent, w_uv), {})


def _split_kv_b(match: Match) -> tuple[Value, Value]:
    """W_UK [H, qk_nope_head_dim, kv_lora_rank] and W_UV [H, v_head_dim, kv_lora_rank] of kv_b."""
    _, heads, width = match["kv"].shape
    nope = match["k_nope"].attrs["stop"]
    weight = ops.apply("reshape", (match["kv_b"],), {"shape": (heads, width, match["kv_b"].shape[-1])})
    w_uk = ops.apply("slice", (weight,), {"axis": 1, "start": 0, "stop": nope})
    w_uv = ops.apply("slice", (weight,), {"axis": 1, "start": nope, "stop": width})
    return w_uk, w_uv


@dataclass(frozen=True)
class FuseMla:
    """form: "absorbed" or "materialized"."""

    form: str
    name: ClassVar[str] = "fuse-mla"
    phase: ClassVar[str] = "fuse"

    def run(self, graph: Graph) -> tuple[Graph, int]:
        return rewrite_graph(graph, (Write(), Attention(self.form)), self.name)
