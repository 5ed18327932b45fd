"""Each fused operation against loops over its published formula, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dsv3c.compiler.errors import TypeRuleError
from dsv3c.compiler.formats.activations import quantize_rows
from tests.compiler.core.ops.paged import (
    PAGE,
    PAGING,
    POSITIONS,
    close,
    context_slots,
    evaluate,
    infer,
    normal,
    silu,
    softmax,
)


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


P3 = ("i32[T]", "i32[T]", "i32[S, P]")
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
    ],
)
def test_wrong_operands_are_refused_with_a_reason(
    op: str, types: tuple[str, ...], attrs: dict[str, Any], reason: str
) -> None:
    with pytest.raises(TypeRuleError, match=reason):
        infer(op, *types, **attrs)
