"""Each operation of a mixture of experts against loops over its published formula, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3c.compiler.errors import TypeRuleError
from tests.compiler.core.ops.paged import close, evaluate, infer, normal, silu, softmax


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


ROUTER = {"n_group": 2, "topk_group": 1, "top_k": 2, "scoring": "sigmoid", "group_score": "max"}


@pytest.mark.parametrize(
    ("op", "types", "attrs", "reason"),
    [
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
    with pytest.raises(TypeRuleError, match=reason):
        infer(op, *types, **attrs)
