"""The operations of sparse attention against loops over their definition, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dsv3c.compiler.errors import TypeRuleError
from tests.compiler.core.ops.paged import PAGE, PAGING, POSITIONS, context_slots, evaluate, infer, normal

TYPES = ("i32[T]", "i32[T]", "i32[S, P]")
WRITE = {"eps": 1e-6, "interleave": False, "page_size": PAGE}


@pytest.mark.parametrize("interleave", [True, False])
def test_index_write_puts_the_norm_with_its_first_columns_rotated_into_the_slot(
    rng: np.random.Generator, interleave: bool
) -> None:
    cache, k, weight, bias = normal(rng, 24, 10), normal(rng, 4, 10), normal(rng, 10), normal(rng, 10)
    table = evaluate("rope_table", POSITIONS, np.array([1.0, 0.1], np.float32), scale=1.0)
    result = evaluate("index_write", cache, k, weight, bias, table, *PAGING, **WRITE | {"interleave": interleave})
    expected = cache.astype(float)
    for token in range(4):
        row = k[token].astype(float)
        centred = row - row.mean()
        key = centred / math.sqrt((centred**2).mean() + 1e-6) * weight + bias
        turned = evaluate("rope", key[None, :4].astype(np.float32), table[token, None], interleave=interleave)[0]
        expected[context_slots(token)[-1]] = [*turned, *key[4:]]
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [1, 3, 7, 8, 10, 12])
def test_index_topk_chooses_the_best_positions_of_the_context(rng: np.random.Generator, k: int) -> None:
    q, weights, cache = normal(rng, 4, 2, 6), normal(rng, 4, 2), normal(rng, 24, 6)
    result = evaluate("index_topk", q, weights, cache, *PAGING, k=k, page_size=PAGE)
    for token in range(4):
        keys = cache[context_slots(token)].astype(float)
        scores = [sum(weights[token, h] * max(0, q[token, h] @ key) for h in range(2)) for key in keys]
        best = sorted(sorted(range(len(scores)), key=lambda p: (-scores[p], p))[:k])
        assert result[token].tolist() == best + [-1] * (k - len(best))


def test_of_equal_scores_the_lower_position_is_chosen() -> None:
    q, weights = np.ones((4, 1, 2), np.float32), np.ones((4, 1), np.float32)
    cache = np.zeros((24, 2), np.float32)
    cache[context_slots(3)[5]] = 1
    result = evaluate("index_topk", q, weights, cache, *PAGING, k=3, page_size=PAGE)
    assert result.tolist() == [[0, 1, 2], [0, 1, 2], [0, -1, -1], [0, 1, 5]]


def test_sparse_attention_over_the_whole_context_is_attention(rng: np.random.Generator) -> None:
    q_latent, q_pe, cache = normal(rng, 4, 2, 6), normal(rng, 4, 2, 4), normal(rng, 24, 10)
    chosen = np.array([[p if p <= last else -1 for p in range(12)] for last in POSITIONS], np.int32)
    found = evaluate("mla_sparse", q_latent, q_pe, cache, chosen, *PAGING, scale=0.3, page_size=PAGE)
    expected = evaluate("mla_absorbed", q_latent, q_pe, cache, *PAGING, scale=0.3, page_size=PAGE)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_sparse_attention_sees_no_other_position(rng: np.random.Generator) -> None:
    q_latent, q_pe, cache = normal(rng, 4, 2, 6), normal(rng, 4, 2, 4), normal(rng, 24, 10)
    chosen = np.array([[2, 5, -1], [0, 1, 7], [0, -1, -1], [4, 8, 9]], np.int32)
    attend = {"scale": 0.3, "page_size": PAGE}
    found = evaluate("mla_sparse", q_latent, q_pe, cache, chosen, *PAGING, **attend)
    for token in range(4):
        rows = [context_slots(token)[p] for p in chosen[token] if p >= 0]
        others = [row for row in range(24) if row not in rows]
        changed = cache.copy()
        changed[others] = np.nan
        again = evaluate("mla_sparse", q_latent, q_pe, changed, chosen, *PAGING, **attend)
        np.testing.assert_array_equal(again[token], found[token])


@pytest.mark.parametrize(
    ("op", "types", "attrs", "reason"),
    [
        (
            "index_write",
            ("f32[N, 8]", "f32[T, 6]", "f32[6]", "f32[6]", "f32[T, 4]", *TYPES),
            WRITE,
            "do not fit the cache",
        ),
        (
            "index_write",
            ("int8-at4[N, 6]", "f32[T, 6]", "f32[6]", "f32[6]", "f32[T, 4]", *TYPES),
            WRITE,
            "do not fit the cache",
        ),
        ("index_write", ("f32[N, 6]", "f32[T, 6]", "f32[6]", "f32[5]", "f32[T, 4]", *TYPES), WRITE, "are no norm"),
        ("index_write", ("f32[N, 6]", "f32[T, 6]", "f32[6]", "f32[6]", "f32[T, 8]", *TYPES), WRITE, "the table 8"),
        ("index_topk", ("f32[T, 2, 6]", "f32[T, 3]", "f32[N, 6]", *TYPES), {"k": 2}, "differ in tokens or heads"),
        ("index_topk", ("f32[T, 2, 6]", "f32[T, 2]", "f32[N, 8]", *TYPES), {"k": 2}, "do not fit the keys"),
        ("index_topk", ("f32[T, 2, 6]", "f32[T, 2]", "f32[N, 6]", *TYPES), {"k": 0}, "cannot choose 0"),
        ("mla_sparse", ("f32[T, 2, 6]", "f32[T, 2, 4]", "f32[N, 10]", "i32[R, 3]", *TYPES), {"scale": 1.0}, "chosen"),
        (
            "mla_sparse",
            ("f32[T, 2, 6]", "f32[T, 2, 4]", "f32[N, 9]", "i32[T, 3]", *TYPES),
            {"scale": 1.0},
            "do not fit",
        ),
    ],
)
def test_operands_that_do_not_fit_are_refused(
    op: str, types: tuple[str, ...], attrs: dict[str, Any], reason: str
) -> None:
    with pytest.raises(TypeRuleError, match=reason):
        infer(op, *types, **{**attrs, "page_size": PAGE})
