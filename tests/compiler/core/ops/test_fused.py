"""Each fused operation against loops over its published formula, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import parse_type
from dsv3c.compiler.errors import TypeRuleError
from dsv3c.compiler.formats.activations import quantize_rows
from tests.compiler.core.ops.paged import PAGE, PAGING, POSITIONS, context_slots, evaluate, normal


def silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def close(result: Any, expected: Any) -> None:
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, np.array(expected), rtol=2e-5, atol=1e-6)


def normed(row: Any, weight: Any, eps: float) -> Any:
    return [x / math.sqrt(math.fsum(y * y for y in row) / len(row) + eps) * w for x, w in zip(row, weight, strict=True)]


def rotated(row: Any, position: int, inv_freq: Any, scale: float, interleave: bool) -> list[float]:
    half = len(row) // 2
    pairs = [(row[2 * i], row[2 * i + 1]) if interleave else (row[i], row[half + i]) for i in range(half)]
    turned = [
        complex(first, second) * scale * complex(math.cos(position * f), math.sin(position * f))
        for (first, second), f in zip(pairs, map(float, inv_freq), strict=True)
    ]
    return [z.real for z in turned] + [z.imag for z in turned]


def softmax(scores: list[float]) -> list[float]:
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / math.fsum(weights) for weight in weights]


def test_rms_norm(rng: np.random.Generator) -> None:
    x, weight = normal(rng, 3, 6), normal(rng, 6)
    close(evaluate("rms_norm", x, weight, eps=1e-3), [normed(row, weight, 1e-3) for row in x.astype(float)])


@pytest.mark.parametrize("interleave", [True, False])
def test_rope_turns_pairs_by_the_angle_of_their_position(rng: np.random.Generator, interleave: bool) -> None:
    x, inv_freq = normal(rng, 4, 3, 8), np.array([1.0, 0.3, 0.1, 0.01], np.float32)
    table = evaluate("rope_table", POSITIONS, inv_freq, scale=1.5)
    result = evaluate("rope", x, table, interleave=interleave)
    expected = [
        [rotated(x[t, h].astype(float), int(POSITIONS[t]), inv_freq, 1.5, interleave) for h in range(3)]
        for t in range(4)
    ]
    close(result, expected)
    assert np.array_equal(evaluate("rope", x[:, 0], table, interleave=interleave), result[:, 0])


def test_rope_leaves_columns_behind_those_of_the_table(rng: np.random.Generator) -> None:
    x, table = normal(rng, 4, 3, 10), evaluate("rope_table", POSITIONS, np.array([1.0, 0.3], np.float32), scale=1.0)
    result = evaluate("rope", x, table, interleave=True)
    assert np.array_equal(result[..., :4], evaluate("rope", x[..., :4], table, interleave=True))
    assert np.array_equal(result[..., 4:], x[..., 4:])


def test_swiglu(rng: np.random.Generator) -> None:
    x = normal(rng, 3, 10)
    close(evaluate("swiglu", x), [[silu(float(row[i])) * float(row[5 + i]) for i in range(5)] for row in x])


def test_head_linear(rng: np.random.Generator) -> None:
    x, weight = normal(rng, 3, 2, 5), normal(rng, 2, 4, 5)
    expected = [[[float(x[t, h] @ weight[h, n]) for n in range(4)] for h in range(2)] for t in range(3)]
    close(evaluate("head_linear", x, weight), expected)


def test_mla_write_puts_norm_and_rotation_into_the_slot_of_each_token(rng: np.random.Generator) -> None:
    cache, kv_a, weight = normal(rng, 24, 10), normal(rng, 4, 10), normal(rng, 6)
    inv_freq = np.array([1.0, 0.1], np.float32)
    table = evaluate("rope_table", POSITIONS, inv_freq, scale=1.0)
    attrs = {"eps": 1e-5, "interleave": True, "page_size": PAGE}
    result = evaluate("mla_write", cache, kv_a, weight, table, *PAGING, **attrs)
    expected = cache.astype(float)
    for token in range(4):
        row = kv_a[token].astype(float)
        rotation = rotated(row[6:], int(POSITIONS[token]), inv_freq, 1.0, True)
        expected[context_slots(token)[-1]] = [*normed(row[:6], weight, 1e-5), *rotation]
    close(result, expected)


def test_mla_absorbed_attends_to_the_latent_rows_of_the_own_sequence(rng: np.random.Generator) -> None:
    q_latent, q_pe, cache = normal(rng, 4, 2, 6), normal(rng, 4, 2, 4), normal(rng, 24, 10)
    expected = np.zeros((4, 2, 6))
    for t, h in np.ndindex(4, 2):
        rows = cache[context_slots(t)].astype(float)
        weights = softmax([0.3 * float(np.concatenate([q_latent[t, h], q_pe[t, h]]) @ row) for row in rows])
        expected[t, h] = sum(weight * row[:6] for weight, row in zip(weights, rows, strict=True))
    close(evaluate("mla_absorbed", q_latent, q_pe, cache, *PAGING, scale=0.3, page_size=PAGE), expected)


def test_mla_materialized_attends_with_rebuilt_keys_and_values(rng: np.random.Generator) -> None:
    q_nope, q_pe, cache = normal(rng, 4, 2, 5), normal(rng, 4, 2, 4), normal(rng, 24, 10)
    w_uk, w_uv = normal(rng, 2, 5, 6), normal(rng, 2, 3, 6)
    expected = np.zeros((4, 2, 3))
    for t, h in np.ndindex(4, 2):
        rows = cache[context_slots(t)].astype(float)
        scores = [0.3 * float(q_nope[t, h] @ (w_uk[h] @ row[:6]) + q_pe[t, h] @ row[6:]) for row in rows]
        expected[t, h] = sum(w * (w_uv[h] @ row[:6]) for w, row in zip(softmax(scores), rows, strict=True))
    result = evaluate("mla_materialized", q_nope, q_pe, cache, w_uk, w_uv, *PAGING, scale=0.3, page_size=PAGE)
    close(result, expected)


def test_both_forms_of_attention_agree(rng: np.random.Generator) -> None:
    q_nope, q_pe, cache = normal(rng, 4, 2, 5), normal(rng, 4, 2, 4), normal(rng, 24, 10)
    w_uk, w_uv = normal(rng, 2, 5, 6), normal(rng, 2, 3, 6)
    attrs = {"scale": 0.3, "page_size": PAGE}
    q_latent = evaluate("head_linear", q_nope, w_uk.transpose(0, 2, 1))
    absorbed = evaluate("head_linear", evaluate("mla_absorbed", q_latent, q_pe, cache, *PAGING, **attrs), w_uv)
    close(absorbed, evaluate("mla_materialized", q_nope, q_pe, cache, w_uk, w_uv, *PAGING, **attrs))


def test_mla_materialized_with_a_group_rebuilds_from_latents_in_int8(rng: np.random.Generator) -> None:
    q_nope, q_pe, cache = normal(rng, 4, 2, 5), normal(rng, 4, 2, 4), normal(rng, 24, 68)
    w_uk, w_uv = normal(rng, 2, 5, 64), normal(rng, 2, 3, 64)
    data, scale, _ = quantize_rows(cache[:, :64], 32)
    rounded = np.concatenate([(data.reshape(24, 2, 32) * scale[..., None]).reshape(24, 64), cache[:, 64:]], axis=-1)

    def attended(rows: Any, **attrs: int) -> Any:
        operands = (q_nope, q_pe, rows, w_uk, w_uv, *PAGING)
        return evaluate("mla_materialized", *operands, scale=0.3, page_size=PAGE, **attrs)

    close(attended(cache, group=32), attended(rounded))
    assert not np.allclose(attended(cache, group=32), attended(cache), rtol=0, atol=1e-4)


def chosen_experts(scores: list[float], n_group: int, topk_group: int, top_k: int, best: int) -> list[int]:
    """Experts of the best groups, best first; of equals the lower index."""
    size = len(scores) // n_group
    groups = [scores[g * size : (g + 1) * size] for g in range(n_group)]
    rated = [math.fsum(sorted(group)[-best:]) for group in groups]
    kept = sorted(range(n_group), key=lambda g: (-rated[g], g))[:topk_group]
    candidates = [e for e in range(len(scores)) if e // size in kept]
    return sorted(candidates, key=lambda e: (-scores[e], e))[:top_k]


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("group_score", "best"), [("top2", 2), ("max", 1)])
@pytest.mark.parametrize(("n_group", "topk_group"), [(1, 1), (4, 2), (4, 4)])
@pytest.mark.parametrize("biased", [True, False])
def test_router(
    rng: np.random.Generator, scoring: str, group_score: str, best: int, n_group: int, topk_group: int, biased: bool
) -> None:
    logits, bias = normal(rng, 20, 16), normal(rng, 16)
    scores = 1 / (1 + np.exp(-logits.astype(float)))
    if scoring == "softmax":
        scores = np.array([softmax(row) for row in logits.astype(float)])
    choice = scores + bias if biased else scores
    operands = (logits, bias) if biased else (logits,)
    attrs = {"n_group": n_group, "topk_group": topk_group, "top_k": 4, "scoring": scoring, "group_score": group_score}
    expected = [chosen_experts(list(row), n_group, topk_group, 4, best) for row in choice]
    assert evaluate("router", *operands, **attrs).tolist() == expected


@pytest.mark.parametrize("norm_topk_prob", [True, False])
@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_router_weights(rng: np.random.Generator, scoring: str, norm_topk_prob: bool) -> None:
    logits = normal(rng, 3, 8)
    ids = np.array([[1, 7, 0], [2, 3, 4], [7, 6, 5]], np.int32)
    expected = []
    for row, chosen in zip(logits.astype(float), ids, strict=True):
        scores = softmax(row) if scoring == "softmax" else 1 / (1 + np.exp(-row))
        picked = [scores[e] for e in chosen]
        total = math.fsum(picked) if norm_topk_prob else 1
        expected.append([2.5 * score / total for score in picked])
    attrs = {"scoring": scoring, "norm_topk_prob": norm_topk_prob, "scale": 2.5}
    close(evaluate("router_weights", logits, ids, **attrs), expected)


ROUTED = st.integers(0, 5).flatmap(
    lambda tokens: st.lists(st.permutations(range(6)).map(lambda row: row[:3]), min_size=tokens, max_size=tokens)
)


@given(ROUTED, st.integers(0, 2))
def test_expert_order_lists_the_pairs_of_each_active_expert(routed: list[list[int]], shared: int) -> None:
    ids = np.array(routed, np.int32).reshape(len(routed), 3)
    flat = evaluate("expert_order", ids, n_experts=6, n_shared=shared).reshape(-1)
    total, per_token = 6 + shared, 3 + shared
    pairs: dict[int, list[int]] = {}
    for token, row in enumerate(routed):
        for j, expert in enumerate([*row, *range(6, 6 + shared)]):
            pairs.setdefault(expert, []).append(token * per_token + j)
    if not routed:
        assert flat.size == 0
        return
    active = sorted(pairs)
    starts = np.cumsum([0, *(len(pairs[expert]) for expert in active)]).tolist()
    assert flat[0] == len(active)
    assert flat[1 : 1 + len(active)].tolist() == active
    assert flat[1 + total : 2 + total + len(active)].tolist() == starts
    ordered = [pair for expert in active for pair in pairs[expert]]
    assert flat[2 + 2 * total : 2 + 2 * total + len(ordered)].tolist() == ordered


def test_the_expert_products_give_the_weighted_mixture(rng: np.random.Generator) -> None:
    x, ids = normal(rng, 3, 5), np.array([[3, 0], [1, 3], [0, 1]], np.int32)
    gate_up, down, mix = normal(rng, 5, 2, 4, 5), normal(rng, 5, 5, 4), normal(rng, 3, 2)
    order = evaluate("expert_order", ids, n_experts=4, n_shared=1)
    h = evaluate("moe_gate_up", x, order, gate_up)
    result = evaluate("moe_down", h, order, mix, down)
    expected_h, expected = np.zeros((9, 4)), np.zeros((3, 5))
    for t in range(3):
        for j, (expert, weight) in enumerate(zip([*ids[t], 4], [*mix[t], 1], strict=True)):
            row = silu(gate_up[expert, 0].astype(float) @ x[t]) * (gate_up[expert, 1].astype(float) @ x[t])
            expected_h[3 * t + j] = row
            expected[t] += weight * (down[expert].astype(float) @ row)
    close(h, expected_h)
    close(result, expected)


def test_ids_of_no_expert_cost_and_count_nothing_and_identities_give_x_back(rng: np.random.Generator) -> None:
    x, ids = normal(rng, 3, 5), np.array([[3, 0], [1, 5], [7, 4]], np.int32)
    gate_up, down, mix = normal(rng, 5, 2, 4, 5), normal(rng, 5, 5, 4), normal(rng, 3, 2)
    order = evaluate("expert_order", ids, n_experts=4, n_shared=1)
    pairs, starts = order.reshape(-1)[12:], order.reshape(-1)[6:12]
    assert starts.tolist() == [0, 1, 2, 3, 6, 0]
    assert pairs[:6].tolist() == [1, 3, 0, 2, 5, 8]
    held = evaluate("expert_weights", ids, mix, n_experts=4)
    np.testing.assert_array_equal(held, mix * [[1, 1], [1, 0], [0, 0]])
    h = evaluate("moe_gate_up", x, order, gate_up)
    result = evaluate("moe_down", h, order, held, down)
    everyone = evaluate("expert_order", np.minimum(ids, 3), n_experts=4, n_shared=1)
    expected = evaluate("moe_down", evaluate("moe_gate_up", x, everyone, gate_up), everyone, held, down)
    close(result, expected)
    identity = evaluate("identity_experts", x, ids, mix, n_experts=4)
    close(identity, x * np.array([[0], [mix[1, 1]], [mix[2].sum()]], np.float32))


def test_a_step_without_tokens_is_an_empty_mixture() -> None:
    order = evaluate("expert_order", np.zeros((0, 2), np.int32), n_experts=4, n_shared=1)
    h = evaluate("moe_gate_up", np.zeros((0, 5), np.float32), order, np.zeros((5, 2, 4, 5), np.float32))
    mixed = evaluate("moe_down", h, order, np.zeros((0, 2), np.float32), np.zeros((5, 5, 4), np.float32))
    assert (order.shape, h.shape, mixed.shape) == ((0, 15), (0, 4), (0, 5))


P3 = ("i32[T]", "i32[T]", "i32[S, P]")
ROUTER = {"n_group": 2, "topk_group": 1, "top_k": 2, "scoring": "sigmoid", "group_score": "max"}
ATTEND = {"scale": 1.0, "page_size": 16}
WRITE = {"eps": 1e-6, "interleave": True, "page_size": 16}


@pytest.mark.parametrize(
    ("op", "types", "attrs", "reason"),
    [
        ("rms_norm", ("f32[T, 4]", "f32[5]"), {"eps": 1e-6}, "do not agree"),
        ("rms_norm", ("bf16[T, 4]", "f32[4]"), {"eps": 1e-6}, "operands are f32"),
        ("rope_table", ("f32[T]", "f32[4]"), {"scale": 1.0}, r"positions are i32\[T\]"),
        ("rope_table", ("i32[T]", "f32[]"), {"scale": 1.0}, r"inv_freq is f32\[d/2\]"),
        ("rope", ("f32[T, 2, 8]", "f32[T, 10]"), {"interleave": True}, "x has 8 columns, the table 10"),
        ("rope", ("f32[T, 2, 8]", "f32[R, 8]"), {"interleave": True}, "x has T tokens, the table R"),
        ("swiglu", ("f32[T, 7]",), {}, "gate and up have the same size"),
        ("head_linear", ("f32[T, 2, 4]", "f32[3, 5, 4]"), {}, "does not fit"),
        ("head_linear", ("f32[T, 4]", "f32[5, 4]"), {}, r"x is \[T, H, K\]"),
        ("mla_write", ("f32[N, 12]", "f32[T, 11]", "f32[8]", "f32[T, 4]", *P3), WRITE, "does not fit the cache"),
        ("mla_write", ("f32[N, 12]", "f32[T, 12]", "f32[8]", "f32[T, 8]", *P3), WRITE, "is not norm"),
        ("mla_absorbed", ("f32[T, 2, 8]", "f32[T, 2, 4]", "f32[N, 13]", *P3), ATTEND, "do not fit the cache"),
        ("mla_absorbed", ("f32[T, 2, 8]", "f32[T, 2, 4]", "int8-at4[N, 12]", *P3), ATTEND, "do not fit the cache"),
        ("mla_write", ("fp8-at4[N, 12]", "f32[T, 12]", "f32[8]", "f32[T, 4]", *P3), WRITE, "do not fit the cache"),
        ("mla_absorbed", ("f32[T, 2, 8]", "f32[T, 3, 4]", "f32[N, 12]", *P3), ATTEND, "differ in tokens or heads"),
        ("mla_absorbed", ("f32[T, 2, 8]", "f32[T, 2, 4]", "f32[N, 12]", *P3[:2]), ATTEND, "missing 1 required"),
        (
            "mla_materialized",
            ("f32[T, 2, 5]", "f32[T, 2, 4]", "f32[N, 12]", "f32[2, 6, 8]", "f32[2, 5, 8]", *P3),
            ATTEND,
            "do not fit the key weight",
        ),
        (
            "mla_materialized",
            ("f32[T, 2, 6]", "f32[T, 2, 4]", "f32[N, 12]", "f32[3, 6, 8]", "f32[2, 5, 8]", *P3),
            ATTEND,
            "do not have the heads",
        ),
        (
            "mla_materialized",
            ("f32[T, 2, 6]", "f32[T, 2, 4]", "f32[N, 12]", "f32[2, 6, 8]", "f32[2, 5, 8]", *P3),
            ATTEND | {"group": -32},
            "rounded in groups of -32",
        ),
        ("router", ("f32[T, 9]",), ROUTER, "9 experts are not 2 groups"),
        ("router", ("f32[T, 8]", "f32[7]"), ROUTER, r"the bias is f32\[8\]"),
        ("router", ("f32[T, 8]",), ROUTER | {"top_k": 5}, "cannot pick 5 of 4 experts"),
        ("router", ("f32[T, 8]",), ROUTER | {"topk_group": 3}, "cannot keep 3 of 2 groups"),
        ("router", ("f32[T, 8]",), ROUTER | {"scoring": "relu"}, "scoring is 'relu'"),
        ("router", ("f32[T, 8]",), ROUTER | {"group_score": "min"}, "group_score is 'min'"),
        ("expert_weights", ("i32[T, 2]", "f32[T, 3]"), {"n_experts": 8}, "not one weight a chosen expert"),
        ("expert_weights", ("f32[T, 2]", "f32[T, 2]"), {"n_experts": 8}, "operands are i32"),
        ("identity_experts", ("f32[R, 4]", "i32[T, 2]", "f32[T, 2]"), {"n_experts": 8}, "differ in tokens"),
        ("expert_order", ("f32[T, 2]",), {"n_experts": 8, "n_shared": 0}, "operands are i32"),
        ("moe_gate_up", ("f32[T, 4]", "i32[T, 20]", "f32[8, 2, 6, 5]"), {}, r"is no \[E', 2, I, D\]"),
        ("moe_gate_up", ("f32[T, 4]", "i32[T, 20]", "f32[8, 6, 4]"), {}, r"the weight is \[E', 2, I, D\]"),
        ("moe_down", ("f32[2*T, 6]", "i32[T, 20]", "f32[T, 2]", "f32[8, 4, 5]"), {}, "does not fit the weight"),
        ("moe_down", ("f32[2*T, 6]", "i32[T, 20]", "f32[R, 2]", "f32[8, 4, 6]"), {}, "differ in tokens"),
    ],
)
def test_wrong_operands_are_refused_with_a_reason(
    op: str, types: tuple[str, ...], attrs: dict[str, Any], reason: str
) -> None:
    operands = tuple(ops.leaf("input", f"x{i}", parse_type(type)) for i, type in enumerate(types))
    with pytest.raises(TypeRuleError, match=reason):
        ops.apply(op, operands, attrs)
