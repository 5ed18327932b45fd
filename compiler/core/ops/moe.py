"""Mixtures of experts: the fused operations that choose experts, sort tokens by them, and compute what they give.

DeepSeek-V3 (arXiv 2412.19437, section 2.1.2). Sizes: T tokens, E routed experts, E' with the shared ones, k experts a
token, s shared experts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dsv3c.compiler.core.ir import TensorType, dim_product
from dsv3c.compiler.core.ops import primitive
from dsv3c.compiler.core.ops.table import Array, Op, float32, op_table, require
from dsv3c.compiler.core.ops.weight import decoded

F32, I32 = primitive.F32, primitive.I32


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
    candidates = topk_group * (int(experts) // n_group)
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
    pairs = int(order.shape[-1]) - 2 * int(weight.shape[0]) - 2
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
    Op("router", infer_router, evaluate_router, role="fused"),
    Op("router_weights", infer_router_weights, evaluate_router_weights, role="fused"),
    Op("expert_weights", infer_expert_weights, evaluate_expert_weights, role="fused"),
    Op("identity_experts", infer_identity_experts, evaluate_identity_experts, role="fused"),
    Op("expert_order", infer_expert_order, evaluate_expert_order, role="fused"),
    Op("moe_gate_up", infer_moe_gate_up, evaluate_moe_gate_up, role="fused"),
    Op("moe_down", infer_moe_down, evaluate_moe_down, role="fused"),
)
