"""router, router_weights, expert_weights, identity_experts, expert_order, moe_gate_up and moe_down in plain numpy."""

import numpy as np

from dsv3c.compiler.core.ops.weight import decoded
from dsv3c.compiler.formats import quant, rows16
from dsv3c.compiler.formats.activations import quantize_rows
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets.calls.moe import MoeDown, MoeGateUp
from dsv3c.targets.calls.operands import Rows, View
from dsv3c.targets.calls.router import ExpertOrder, ExpertWeights, IdentityExperts, Router, RouterWeights

BOUND = 18
FORMATS = ["float32", "bfloat16", "int8", "int4-g32", "int4-g32-asym", "int5-g32", "int2-g16"]
F32 = 3e-6


def normal(*shape, seed=0):
    return np.random.default_rng(sum(shape) + seed).standard_normal(shape).astype(np.float32)


def control(tokens):
    out = np.zeros(16, np.int32)
    out[0] = tokens
    return out


def scores_of(logits, scoring):
    wide = logits.astype(np.float64)
    if scoring == "sigmoid":
        return 1 / (1 + np.exp(-wide))
    grown = np.exp(wide - wide.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)


def best(values, k):
    return np.argsort(-values, axis=-1, kind="stable")[..., :k].astype(np.int32)


def router_case(t, experts, k, n_group, topk_group, scoring, group_score, bias, logits=None):
    logits = normal(t, experts) if logits is None else logits
    biases = normal(experts) if bias else np.zeros(experts, np.float32)
    choice = scores_of(logits, scoring) + biases
    groups = choice.reshape(t, n_group, -1)
    group_scores = np.sort(groups, -1)[..., -2:].sum(-1) if group_score == "top2" else groups.max(-1)
    kept = best(group_scores, topk_group)
    mask = np.full(groups.shape, -np.inf)
    np.put_along_axis(mask, kept[..., None], 0.0, axis=1)
    ids = best((groups + mask).reshape(t, experts), k)
    spec = Router(Rows(BOUND), experts, n_group, topk_group, k, scoring, group_score, bias)
    inputs = {"control": control(t), "logits": logits} | ({"bias": biases} if bias else {})
    return spec, inputs, {"y": ids}, 0


def router_weights_case(t, experts, k, scoring, norm):
    logits = normal(t, experts)
    ids = best(normal(t, experts, seed=1), k)
    weights = np.take_along_axis(scores_of(logits, scoring), ids, -1)
    if norm:
        weights = weights / weights.sum(-1, keepdims=True)
    spec = RouterWeights(Rows(BOUND), experts, k, scoring, norm, 2.5)
    return spec, {"control": control(t), "logits": logits, "ids": ids}, {"y": weights * 2.5}, F32


def order_of(ids, experts, shared):
    """(order vector, expert of each pair, -1 for none)."""
    t, total = len(ids), experts + shared
    routed = np.where(ids < experts, ids, -1)
    all_ids = np.concatenate([routed, np.tile(np.arange(experts, total), (t, 1))], -1).reshape(-1)
    listed = np.flatnonzero(all_ids >= 0)
    active, counts = np.unique(all_ids[listed], return_counts=True)
    out = np.full(2 + 2 * total + len(all_ids), -77, np.int32)
    out[0] = len(active)
    out[1 : 1 + len(active)] = active
    out[1 + total : 2 + total + len(active)] = [0, *np.cumsum(counts)]
    out[2 + 2 * total : 2 + 2 * total + len(listed)] = listed[np.argsort(all_ids[listed], kind="stable")]
    return out, all_ids


def some_ids(t, experts, k):
    """Distinct experts a token, with some experts left without any."""
    return best(normal(t, experts, seed=2) + np.linspace(3, 0, experts), k)


def expert_order_case(t, experts, k, shared, none=0):
    """none: how many more ids there are, which are no expert's."""
    ids = some_ids(t, experts + none, k)
    spec = ExpertOrder(Rows(BOUND), experts, k, shared)
    return spec, {"control": control(t), "ids": ids}, {"y": order_of(ids, experts, shared)[0]}, 0


def expert_weights_case(t, experts, k, none):
    ids, weights = some_ids(t, experts + none, k), normal(t, k)
    inputs = {"control": control(t), "ids": ids, "weights": weights}
    return ExpertWeights(Rows(BOUND), experts, k), inputs, {"y": np.where(ids < experts, weights, 0)}, 0


def identity_experts_case(t, d, experts, k, none, view=None):
    ids, weights = some_ids(t, experts + none, k), normal(t, k)
    x = normal(t, view.row_stride if view else d)
    own = x[:, view.offset : view.offset + d] if view else x
    y = own * np.where(ids < experts, 0, weights).astype(np.float64).sum(-1, keepdims=True)
    inputs = {"control": control(t), "x": x, "ids": ids, "weights": weights}
    return IdentityExperts(Rows(BOUND), d, experts, k, view), inputs, {"y": y}, F32


def stored_weight(w, spec):
    """(packed components, the float values they stand for)."""
    stored = quant.stored(w, spec)
    return rows16.pack(stored, spec), decoded(stored).astype(np.float64)


def activation(x, spec):
    """(operands, the float values they stand for)."""
    if not spec.integer_products:
        return {"x": x}, x.astype(np.float64)
    data, scale, total = quantize_rows(x, spec.grouping.activations)
    values = data.reshape(*scale.shape, spec.grouping.activations) * scale[..., None].astype(np.float64)
    return {"x.data": data, "x.scale": scale, "x.sum": total}, values.reshape(data.shape)[:, : x.shape[1]]


def moe_case(op, name, t, d, i, experts, k, shared, bound=BOUND, ids=None):
    spec, order_spec = WeightFormat.parse(name), ExpertOrder(Rows(bound), experts, k, shared)
    order, pair_experts = order_of(some_ids(t, experts, k) if ids is None else ids, experts, shared)
    tokens = np.arange(len(pair_experts)) // (k + shared)
    total = experts + shared
    inputs = {"control": control(t), "order": order}
    if op is MoeGateUp:
        packed, w = stored_weight(normal(total, 2, i, d), spec)
        given, x = activation(normal(t, d), spec)
        gate, up = np.einsum("pd,phid->hpi", x[tokens], w[pair_experts])
        y = gate / (1 + np.exp(-gate)) * up
    else:
        packed, w = stored_weight(normal(total, d, i), spec)
        given, x = activation(normal(len(tokens), i), spec)
        weights = normal(t, k) if ids is None else np.where(ids < experts, normal(t, k), 0)
        inputs["weights"] = weights.astype(np.float32)
        mix = np.concatenate([weights, np.ones((t, shared))], -1).reshape(-1, 1)
        y = np.zeros((t, d))
        np.add.at(y, tokens, mix * np.einsum("pi,pdi->pd", x, w[pair_experts]))
    inputs |= given | {f"w.{part}": array for part, array in packed.items()}
    return op(order_spec, d, i, spec), inputs, {"y": y}, F32


def all_cases():
    for scoring in ("sigmoid", "softmax"):
        for t in (1, 17):
            yield f"router-{scoring}-plain-t{t}", router_case(t, 64, 6, 1, 1, scoring, "max", False)
            yield f"router-{scoring}-groups-t{t}", router_case(t, 40, 5, 8, 3, scoring, "top2", True)
            yield f"router-{scoring}-max-t{t}", router_case(t, 21, 3, 3, 2, scoring, "max", False)
        for norm in (False, True):
            yield f"weights-{scoring}-{norm}", router_weights_case(5, 21, 4, scoring, norm)
    ties = np.zeros((2, 24), np.float32)
    yield "router-ties", router_case(2, 24, 4, 4, 2, "sigmoid", "top2", False, logits=ties)
    for t, experts, k, shared in [(1, 8, 2, 1), (5, 8, 2, 0), (17, 16, 4, 2), (18, 3, 3, 1), (0, 8, 2, 1)]:
        yield f"order-t{t}-e{experts}-s{shared}", expert_order_case(t, experts, k, shared)
    for t, experts, k, none in [(1, 8, 3, 4), (17, 8, 3, 4), (5, 2, 2, 9), (0, 8, 2, 1)]:
        yield f"order-t{t}-e{experts}-none{none}", expert_order_case(t, experts, k, 0, none)
        yield f"expert-weights-t{t}-e{experts}", expert_weights_case(t, experts, k, none)
        yield f"identity-t{t}-e{experts}", identity_experts_case(t, 33, experts, k, none)
    yield "order-shared-and-none", expert_order_case(5, 4, 2, 1, 3)
    yield "identity-view", identity_experts_case(5, 33, 4, 3, 4, View(48, 3))
    ids = some_ids(17, 12, 3)
    ids[3] = 8, 10, 9
    for t in (1, 17):
        for name in ("float32", "int4-g32"):
            own = ids[3 : 3 + t] if t == 1 else ids
            yield f"MoeDown-{name}-none-t{t}", moe_case(MoeDown, name, t, 48, 33, 8, 3, 0, ids=own)
    for name in FORMATS:
        for op in (MoeGateUp, MoeDown):
            for t in (1, 3, 17):
                yield f"{op.__name__}-{name}-t{t}", moe_case(op, name, t, 48, 33, 8, 2, 1)
            yield f"{op.__name__}-{name}-wide", moe_case(op, name, 5, 272, 129, 6, 3, 0)


CASES = dict(all_cases())
