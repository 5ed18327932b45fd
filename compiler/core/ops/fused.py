"""The fused operations: made by the passes, one kernel call each on every target.

Their numpy evaluation is the definition that kernels are tested against. Operands that a target stores quantised
(weights, activations) are decoded first, so one definition serves every format. Sizes: T tokens, H heads, L latent row
(kv_lora_rank + qk_rope_head_dim), E routed experts, E' with the shared ones, k experts a token, s shared experts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dsv3c.compiler.core.ir import Dim, TensorType, dim_product
from dsv3c.compiler.core.ops import primitive
from dsv3c.compiler.core.ops.table import Array, Op, float32, op_table, require
from dsv3c.compiler.core.ops.weight import decoded, evaluate_quantize_rows
from dsv3c.compiler.formats.coded_rows import CodedRows
from dsv3c.compiler.formats.elements import as_float32

F32, I32 = primitive.F32, primitive.I32


# --- norm, rotary embedding, feed-forward ----------------------------------------------------------------------------


def infer_rms_norm(x: TensorType, weight: TensorType, eps: float) -> TensorType:
    primitive.require_dtype(F32, x, weight)
    require(x.shape[-1:] == weight.shape, f"x {x.shape} and weight {weight.shape} do not agree")
    return TensorType(F32, x.shape)


def evaluate_rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x / sqrt(mean(x²) + eps) * weight over the last axis (Zhang and Sennrich 2019, arXiv 1910.07467)."""
    variance = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
    return float32(x * (1 / np.sqrt(variance + np.float32(eps))) * weight)


def infer_rope_table(positions: TensorType, inv_freq: TensorType, scale: float) -> TensorType:
    require(positions.dtype == I32 and len(positions.shape) == 1, "positions are i32[T]")
    require(inv_freq.dtype == F32 and len(inv_freq.shape) == 1, "inv_freq is f32[d/2]")
    return TensorType(F32, (*positions.shape, dim_product(2, inv_freq.shape[0])))


def evaluate_rope_table(positions: Array, inv_freq: Array, scale: float) -> Array:
    """[T, d]: cos in the first half, sin in the second, both times `scale`."""
    angles = positions[:, None].astype(np.float32) * inv_freq
    return float32(np.concatenate([np.cos(angles), np.sin(angles)], axis=-1) * np.float32(scale))


def infer_rope(x: TensorType, table: TensorType, interleave: bool) -> TensorType:
    primitive.require_dtype(F32, x, table)
    columns, rotated = x.shape[-1], table.shape[-1]
    fits = isinstance(columns, int) and isinstance(rotated, int) and rotated <= columns
    require(fits, f"x has {columns} columns, the table {rotated}")
    require(x.shape[0] == table.shape[0], f"x has {x.shape[0]} tokens, the table {table.shape[0]}")
    return x


def evaluate_rope(x: Array, table: Array, interleave: bool) -> Array:
    """Rotate x [T, H, d] or [T, d]; pairs are (even, odd) columns when `interleave`, else (first, second) half.

    The result holds the rotated first members, then the second members. Columns behind those of the table [T, r] stay
    as they are.
    """
    x, rest = np.split(x, [table.shape[-1]], axis=-1)
    half = x.shape[-1] // 2
    shape = (x.shape[0], *(1,) * (x.ndim - 2), half)
    cos, sin = table[:, :half].reshape(shape), table[:, half:].reshape(shape)
    first, second = (x[..., 0::2], x[..., 1::2]) if interleave else (x[..., :half], x[..., half:])
    return float32(np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1))


def infer_swiglu(x: TensorType) -> TensorType:
    primitive.require_dtype(F32, x)
    size = x.shape[-1]
    require(isinstance(size, int) and size % 2 == 0, "gate and up have the same size")
    return TensorType(F32, (*x.shape[:-1], int(size) // 2))


def evaluate_swiglu(x: Array) -> Array:
    """silu(gate) * up of x = gate | up."""
    gate, up = np.split(x, 2, axis=-1)
    return float32(gate * primitive.evaluate_sigmoid(gate) * up)


# --- multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) -----------------------------------------


def infer_head_linear(x: TensorType, weight: TensorType) -> TensorType:
    """x [T, H, K], weight [H, N, K] -> [T, H, N]: one linear map a head."""
    require(len(x.shape) == len(weight.shape) == 3, "x is [T, H, K], the weight [H, N, K]")
    require(x.shape[-1] == weight.shape[-1] and x.shape[1] == weight.shape[0], f"{x} does not fit {weight}")
    return TensorType(F32, (x.shape[0], weight.shape[0], weight.shape[1]))


def evaluate_head_linear(x: Any, weight: Any) -> Array:
    return float32(np.einsum("thk,hnk->thn", decoded(x), decoded(weight), optimize=True))


def _require_parts(cache: TensorType, rank: Dim, rope: Dim) -> None:
    """A cache's row is `rank` columns of the latent and `rope` of the key, and its scales, if any, are those parts'."""
    coded = CodedRows.of_type(cache.dtype)
    fits = cache.shape[1:] == (_sum(rank, rope),) and (coded is None or coded.split == rank)
    require(fits, f"a latent of {rank} and a key of {rope} do not fit the cache {cache}")


def infer_mla_write(
    cache: TensorType,
    kv_a: TensorType,
    weight: TensorType,
    table: TensorType,
    positions: TensorType,
    sequence: TensorType,
    page_table: TensorType,
    eps: float,
    interleave: bool,
    page_size: int,
) -> TensorType:
    primitive.require_paging(positions, sequence, page_table)
    require(cache.shape[1:] == kv_a.shape[1:], f"a latent row {kv_a.shape} does not fit the cache {cache.shape}")
    parts = _sum(weight.shape[0], table.shape[-1])
    require(kv_a.shape[-1] == parts, f"a latent row {kv_a.shape} is not norm {weight.shape} and rope {table.shape}")
    _require_parts(cache, weight.shape[0], table.shape[-1])
    return cache


def evaluate_mla_write(
    cache: Array,
    kv_a: Array,
    weight: Array,
    table: Array,
    positions: Array,
    sequence: Array,
    page_table: Array,
    eps: float,
    interleave: bool,
    page_size: int,
) -> Array:
    """Write each token's latent row: rms_norm of the first kv_lora_rank columns of kv_a [T, L], rope of the rest."""
    rank = weight.shape[0]
    latent = evaluate_rms_norm(kv_a[:, :rank], weight, eps)
    rotated = evaluate_rope(kv_a[:, rank:], table, interleave)
    slots = primitive.evaluate_token_slots(positions, sequence, page_table, page_size)
    return primitive.evaluate_scatter_rows(cache, slots, np.concatenate([latent, rotated], axis=-1))


def infer_mla_absorbed(
    q_latent: TensorType,
    q_pe: TensorType,
    cache: TensorType,
    positions: TensorType,
    sequence: TensorType,
    page_table: TensorType,
    scale: float,
    page_size: int,
) -> TensorType:
    primitive.require_paging(positions, sequence, page_table)
    primitive.require_dtype(F32, q_latent, q_pe)
    require(q_latent.shape[:-1] == q_pe.shape[:-1], f"queries {q_latent} and {q_pe} differ in tokens or heads")
    _require_parts(cache, q_latent.shape[-1], q_pe.shape[-1])
    return q_latent


def _sum(*dims: Dim) -> int:
    return sum(int(dim) for dim in dims)


def _attend(
    scores: Array, values: Array, positions: Array, sequence: Array, page_table: Array, page_size: int
) -> Array:
    """Causal softmax over the context: scores [H, T, N], values [N, V] or [H, N, V] -> [T, H, V]."""
    mask = primitive.evaluate_context_mask(positions, sequence, page_table, page_size)
    weights = primitive.evaluate_softmax(np.where(mask, scores, -np.inf))
    return float32(np.matmul(weights, values).transpose(1, 0, 2))


def evaluate_mla_absorbed(
    q_latent: Array,
    q_pe: Array,
    cache: Array,
    positions: Array,
    sequence: Array,
    page_table: Array,
    scale: float,
    page_size: int,
) -> Array:
    """Attention in latent space: the cache is the one key head, its first kv_lora_rank columns the value."""
    context = as_float32(cache[primitive.evaluate_context_slots(page_table, page_size)])
    query = np.concatenate([q_latent, q_pe], axis=-1).transpose(1, 0, 2)
    scores = np.matmul(query, context.T) * np.float32(scale)
    return _attend(scores, context[:, : q_latent.shape[-1]], positions, sequence, page_table, page_size)


def infer_mla_materialized(
    q_nope: TensorType,
    q_pe: TensorType,
    cache: TensorType,
    w_uk: TensorType,
    w_uv: TensorType,
    positions: TensorType,
    sequence: TensorType,
    page_table: TensorType,
    scale: float,
    page_size: int,
    group: int = 0,
) -> TensorType:
    require(group >= 0, f"latents are rounded in groups of {group}")
    primitive.require_paging(positions, sequence, page_table)
    primitive.require_dtype(F32, q_nope, q_pe)
    require(q_nope.shape[:-1] == q_pe.shape[:-1], f"queries {q_nope} and {q_pe} differ in tokens or heads")
    require(q_nope.shape[1] == w_uk.shape[0] == w_uv.shape[0], f"{w_uk} and {w_uv} do not have the heads of {q_nope}")
    require(w_uk.shape[-1] == w_uv.shape[-1], f"{w_uk} and {w_uv} differ in the latent size")
    require(q_nope.shape[-1] == w_uk.shape[1], f"queries {q_nope} do not fit the key weight {w_uk}")
    _require_parts(cache, w_uk.shape[-1], q_pe.shape[-1])
    return TensorType(F32, (q_nope.shape[0], w_uv.shape[0], w_uv.shape[1]))


def evaluate_mla_materialized(
    q_nope: Array,
    q_pe: Array,
    cache: Array,
    w_uk: Any,
    w_uv: Any,
    positions: Array,
    sequence: Array,
    page_table: Array,
    scale: float,
    page_size: int,
    group: int = 0,
) -> Array:
    """Attention on rebuilt keys and values: w_uk [H, nope, kv_lora_rank], w_uv [H, v, kv_lora_rank].

    group: latents are first rounded to int8 in groups of it (`quantize_rows`); 0: they are not.
    """
    w_uk, w_uv = decoded(w_uk), decoded(w_uv)
    rank = w_uk.shape[-1]
    context = as_float32(cache[primitive.evaluate_context_slots(page_table, page_size)])
    latents = decoded(evaluate_quantize_rows(context[:, :rank], group)) if group else context[:, :rank]
    keys = np.einsum("nl,hdl->hdn", latents, w_uk, optimize=True)
    values = np.einsum("nl,hdl->hnd", latents, w_uv, optimize=True)
    scores = np.matmul(q_nope.transpose(1, 0, 2), keys) + np.matmul(q_pe.transpose(1, 0, 2), context[:, rank:].T)
    return _attend(scores * np.float32(scale), values, positions, sequence, page_table, page_size)


# --- mixture of experts (DeepSeek-V3, arXiv 2412.19437, section 2.1.2) ----------------------------------------------


def routing_scores(logits: Array, scoring: str) -> Array:
    """Affinity of each expert from the router's logits [T, E]; scoring is "sigmoid" or "softmax"."""
    return primitive.evaluate_sigmoid(logits) if scoring == "sigmoid" else primitive.evaluate_softmax(logits)


def require_scoring(scoring: str) -> None:
    require(scoring in ("sigmoid", "softmax"), f"scoring is {scoring!r}")


def infer_router(
    logits: TensorType,
    bias: TensorType | None = None,
    *,
    n_group: int,
    topk_group: int,
    top_k: int,
    scoring: str,
    group_score: str,
) -> TensorType:
    primitive.require_dtype(F32, logits)
    require_scoring(scoring)
    require(group_score in ("top2", "max"), f"group_score is {group_score!r}")
    tokens, experts = logits.shape
    require(bias is None or bias == TensorType(F32, (experts,)), f"the bias is f32[{experts}]")
    require(isinstance(experts, int) and experts % n_group == 0, f"{experts} experts are not {n_group} groups")
    candidates = topk_group * (_sum(experts) // n_group)
    require(0 < topk_group <= n_group, f"cannot keep {topk_group} of {n_group} groups")
    require(0 < top_k <= candidates, f"cannot pick {top_k} of {candidates} experts")
    return TensorType(I32, (tokens, top_k))


def evaluate_router(
    logits: Array,
    bias: Array | None = None,
    *,
    n_group: int,
    topk_group: int,
    top_k: int,
    scoring: str,
    group_score: str,
) -> Array:
    """Expert ids [T, top_k], best first: the best groups are kept (n_group > 1), then the best experts in them.

    Selection looks at score + bias; a group's score is the sum of its two best ("top2") or its best ("max").
    """
    choice = routing_scores(logits, scoring)
    if bias is not None:
        choice = choice + bias
    if n_group > 1:
        groups = choice.reshape(len(choice), n_group, -1)
        best = np.sort(groups, axis=-1)[..., -2:].sum(-1) if group_score == "top2" else groups.max(-1)
        kept = primitive.evaluate_put_along(primitive.evaluate_top_k(best, topk_group), np.ones(1, np.float32), n_group)
        choice = np.where(kept[..., None] > 0, groups, -np.inf).reshape(choice.shape)
    return primitive.evaluate_top_k(choice, top_k)


def infer_router_weights(
    logits: TensorType, ids: TensorType, scoring: str, norm_topk_prob: bool, scale: float
) -> TensorType:
    primitive.require_dtype(F32, logits)
    primitive.require_dtype(I32, ids)
    require_scoring(scoring)
    require(logits.shape[:-1] == ids.shape[:-1], f"{logits} and {ids} differ in tokens")
    return TensorType(F32, ids.shape)


def evaluate_router_weights(logits: Array, ids: Array, scoring: str, norm_topk_prob: bool, scale: float) -> Array:
    """Mixing weights [T, k] of the chosen experts: their scores without the bias, normalised on request, scaled."""
    weights = np.take_along_axis(routing_scores(logits, scoring), ids, axis=-1)
    if norm_topk_prob:
        weights = weights / (weights.sum(axis=-1, keepdims=True) + np.float32(1e-20))
    return float32(weights * np.float32(scale))


def infer_expert_weights(ids: TensorType, weights: TensorType, n_experts: int) -> TensorType:
    primitive.require_dtype(I32, ids)
    primitive.require_dtype(F32, weights)
    require(ids.shape == weights.shape, f"{ids} and {weights} are not one weight a chosen expert")
    return weights


def evaluate_expert_weights(ids: Array, weights: Array, n_experts: int) -> Array:
    """The mixing weights [T, k] of those that work: 0 for ids from n_experts on."""
    return float32(np.where(ids < n_experts, weights, 0))


def infer_identity_experts(x: TensorType, ids: TensorType, weights: TensorType, n_experts: int) -> TensorType:
    primitive.require_dtype(F32, x)
    infer_expert_weights(ids, weights, n_experts)
    require(len(x.shape) == 2 and x.shape[0] == ids.shape[0], f"{x} and {ids} differ in tokens")
    return x


def evaluate_identity_experts(x: Array, ids: Array, weights: Array, n_experts: int) -> Array:
    """x [T, D] times the weights of ids from n_experts on: experts that give back what they are given."""
    return float32(x * np.where(ids < n_experts, 0, weights).sum(axis=-1, keepdims=True, dtype=np.float32))


def infer_expert_order(ids: TensorType, n_experts: int, n_shared: int) -> TensorType:
    primitive.require_dtype(I32, ids)
    tokens, k = ids.shape
    require(isinstance(k, int), "the number of experts a token is known")
    return TensorType(I32, (tokens, 2 * (n_experts + n_shared) + 2 + int(k) + n_shared))


def evaluate_expert_order(ids: Array, n_experts: int, n_shared: int) -> Array:
    """Who works for whom: the pairs p = t*(k+s)+j of token and expert, sorted by expert, stable.

    j < k are the experts ids[t, j], the others the shared experts E+j-k. One flat i32 vector: the number of active
    experts; their ids, rising, in E' places; where each one's pairs start, and the end, in E'+1 places; the pairs.
    An id from E on is no expert's: its pair is not listed, and nothing is computed for it.
    The type says [T, 2E'+2+k+s] so that the size grows with T; the rest of the vector is zero.
    """
    tokens, k = ids.shape
    total = n_experts + n_shared
    shared = np.broadcast_to(np.arange(n_experts, total, dtype=np.int32), (tokens, n_shared))
    pairs = np.concatenate([np.where(ids < n_experts, ids, total), shared], axis=-1).reshape(-1)
    listed = pairs[pairs < total]
    order = np.argsort(pairs, kind="stable")[: len(listed)]
    active, counts = np.unique(listed, return_counts=True)
    table = np.zeros((tokens, 2 * total + 2 + k + n_shared), np.int32)
    if not tokens:
        return table
    flat = table.reshape(-1)
    flat[0] = len(active)
    flat[1 : 1 + len(active)] = active
    flat[1 + total : 2 + total + len(active)] = np.concatenate([[0], np.cumsum(counts)])
    flat[2 + 2 * total : 2 + 2 * total + len(order)] = order
    return table


def pair_experts(order: Array, n_experts: int, n_pairs: int) -> Array:
    """Expert of each pair p = t*(k+s)+j, read back from expert_order's vector; -1 for one that is not listed."""
    experts = np.full(n_pairs, -1, np.int64)
    if not n_pairs:
        return experts
    flat = order.reshape(-1)
    n_active = int(flat[0])
    starts = flat[1 + n_experts : 2 + n_experts + n_active]
    pairs = flat[2 + 2 * n_experts : 2 + 2 * n_experts + starts[-1]]
    experts[pairs] = np.repeat(flat[1 : 1 + n_active], np.diff(starts))
    return experts


def infer_moe_gate_up(x: TensorType, order: TensorType, weight: TensorType) -> TensorType:
    primitive.require_dtype(I32, order)
    require(len(weight.shape) == 4, "the weight is [E', 2, I, D]")
    require(weight.shape[1] == 2 and weight.shape[3] == x.shape[-1], f"{weight} is no [E', 2, I, D] for x {x}")
    pairs = _sum(order.shape[-1]) - 2 * _sum(weight.shape[0]) - 2
    return TensorType(F32, (dim_product(order.shape[0], pairs), weight.shape[2]))


def evaluate_moe_gate_up(x: Any, order: Array, weight: Any) -> Array:
    """silu(gate) * up for each pair of token and expert: x [T, D], weight [E', 2, I, D] -> [T*(k+s), I].

    Rows of pairs that are not listed may hold anything; here they are zero.
    """
    x, weight = decoded(x), decoded(weight)
    n_experts = weight.shape[0]
    per_token = order.shape[1] - 2 * n_experts - 2
    experts = pair_experts(order, n_experts, len(x) * per_token)
    rows = np.repeat(x, per_token, axis=0)
    result = np.zeros((len(rows), weight.shape[2]), np.float32)
    for expert in np.unique(experts[experts >= 0]):
        chosen = experts == expert
        gate, up = rows[chosen] @ weight[expert, 0].T, rows[chosen] @ weight[expert, 1].T
        result[chosen] = gate * primitive.evaluate_sigmoid(gate) * up
    return result


def infer_moe_down(h: TensorType, order: TensorType, weights: TensorType, weight: TensorType) -> TensorType:
    primitive.require_dtype(I32, order)
    primitive.require_dtype(F32, weights)
    require(len(weight.shape) == 3 and h.shape[-1] == weight.shape[-1], f"h {h} does not fit the weight {weight}")
    require(weights.shape[0] == order.shape[0], f"the weights {weights} and the order {order} differ in tokens")
    return TensorType(F32, (weights.shape[0], weight.shape[1]))


def evaluate_moe_down(h: Any, order: Array, weights: Array, weight: Any) -> Array:
    """Weighted sum of the experts' outputs: h [T*(k+s), I], weights [T, k], weight [E', D, I] -> [T, D].

    Shared experts count with weight 1. Pairs that are not listed have weight 0 (see expert_weights), and count nothing
    whatever their rows hold.
    """
    h, weight = decoded(h), decoded(weight)
    tokens, k = weights.shape
    n_experts = weight.shape[0]
    per_token = order.shape[1] - 2 * n_experts - 2
    mix = np.concatenate([weights, np.ones((tokens, per_token - k), np.float32)], axis=-1).reshape(-1)
    experts = pair_experts(order, n_experts, tokens * per_token)
    result = np.zeros((tokens, weight.shape[1]), np.float32)
    for expert in np.unique(experts[experts >= 0]):
        chosen = np.flatnonzero(experts == expert)
        np.add.at(result, chosen // per_token, mix[chosen, None] * (h[chosen] @ weight[expert].T))
    return result


TABLE = op_table(
    Op("rms_norm", infer_rms_norm, evaluate_rms_norm, role="fused"),
    Op("rope_table", infer_rope_table, evaluate_rope_table, role="fused"),
    Op("rope", infer_rope, evaluate_rope, role="fused"),
    Op("swiglu", infer_swiglu, evaluate_swiglu, role="fused"),
    Op("head_linear", infer_head_linear, evaluate_head_linear, role="fused"),
    Op("mla_write", infer_mla_write, evaluate_mla_write, role="fused", in_place=True),
    Op("mla_absorbed", infer_mla_absorbed, evaluate_mla_absorbed, role="fused"),
    Op("mla_materialized", infer_mla_materialized, evaluate_mla_materialized, role="fused"),
    Op("router", infer_router, evaluate_router, role="fused"),
    Op("router_weights", infer_router_weights, evaluate_router_weights, role="fused"),
    Op("expert_weights", infer_expert_weights, evaluate_expert_weights, role="fused"),
    Op("identity_experts", infer_identity_experts, evaluate_identity_experts, role="fused"),
    Op("expert_order", infer_expert_order, evaluate_expert_order, role="fused"),
    Op("moe_gate_up", infer_moe_gate_up, evaluate_moe_gate_up, role="fused"),
    Op("moe_down", infer_moe_down, evaluate_moe_down, role="fused"),
)
