from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3c.compiler.errors import TypeRuleError
from tests.compiler.core.ops.paged import evaluate, infer

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def test_rows_are_scaled_by_the_block_of_their_position() -> None:
    x, factors, positions = normal(5, 3), normal(2), np.array([0, 3, 4, 7, 99], np.int32)
    expected = x * factors[[0, 0, 1, 1, 1]][:, None]
    np.testing.assert_array_equal(evaluate("scale_rows", x, factors, positions, block=4), expected)


@pytest.mark.parametrize(
    ("op", "formula"),
    [
        ("rsqrt", lambda x: x**-0.5),
        ("sigmoid", lambda x: 1 / (1 + math.exp(-x))),
        ("cos", math.cos),
        ("sin", math.sin),
    ],
)
def test_unary(op: str, formula: Any) -> None:
    x = np.abs(normal(3, 4)) + np.float32(0.1)
    expected = [[formula(float(item)) for item in row] for row in x]
    np.testing.assert_allclose(evaluate(op, x), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("op", "formula"),
    [
        ("add", lambda a, b: a + b),
        ("sub", lambda a, b: a - b),
        ("mul", lambda a, b: a * b),
        ("div", lambda a, b: a / b),
    ],
)
def test_binary_with_broadcasting(op: str, formula: Any) -> None:
    a, b = normal(3, 4), normal(3, 1)
    expected = [[formula(float(a[i, j]), float(b[i, 0])) for j in range(4)] for i in range(3)]
    np.testing.assert_allclose(evaluate(op, a, b), expected, rtol=1e-6)


def test_sigmoid_does_not_overflow() -> None:
    with np.errstate(all="raise", under="ignore"):
        result = evaluate("sigmoid", np.array([-1e4, -100, 0, 100, 1e4], np.float32))
    np.testing.assert_allclose(result, [0, math.exp(-100), 0.5, 1, 1], rtol=1e-5, atol=1e-44)


def test_softmax_of_large_and_masked_scores() -> None:
    x = np.array([[1000.0, 1001.0, -np.inf], [0.0, 0.0, 0.0]], np.float32)
    e = math.exp(1)
    expected = [[1 / (1 + e), e / (1 + e), 0], [1 / 3] * 3]
    np.testing.assert_allclose(evaluate("softmax", x), expected, rtol=1e-6)


@pytest.mark.parametrize(("op", "formula"), [("mean", np.mean), ("sum", math.fsum), ("max", max)])
@pytest.mark.parametrize("keepdims", [True, False])
def test_reductions(op: str, formula: Any, keepdims: bool) -> None:
    x = normal(3, 4, 2)
    expected = np.array([[formula([float(x[i, k, j]) for k in range(4)]) for j in range(2)] for i in range(3)])
    result = evaluate(op, x, axis=1, keepdims=keepdims)
    np.testing.assert_allclose(result, expected[:, None] if keepdims else expected, rtol=1e-5)


def test_where_picks_by_the_mask() -> None:
    mask, x = np.array([True, False, True]), normal(3)
    assert evaluate("where", mask, x, np.float32(-np.inf)).tolist() == [x[0], -np.inf, x[2]]


def test_cast() -> None:
    assert evaluate("cast", np.array([0.0, 0.5, -1.0], np.float32), dtype="bool").tolist() == [False, True, True]
    assert evaluate("cast", np.array([3, -2], np.int32), dtype="f32").tolist() == [3.0, -2.0]


def test_linear_multiplies_by_the_transposed_weight_of_each_expert() -> None:
    x, weight = normal(3, 5), normal(2, 4, 5)
    expected = [[[float(x[t] @ weight[e, n]) for n in range(4)] for t in range(3)] for e in range(2)]
    np.testing.assert_allclose(evaluate("linear", x, weight), expected, rtol=1e-4, atol=1e-6)


def test_matmul() -> None:
    a, b = normal(2, 3, 5), normal(2, 5, 4)
    expected = [[[float(a[h, i] @ b[h, :, j]) for j in range(4)] for i in range(3)] for h in range(2)]
    np.testing.assert_allclose(evaluate("matmul", a, b), expected, rtol=1e-4, atol=1e-6)


def test_moving_elements() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert evaluate("reshape", x, shape=("T", 12)).tolist() == x.reshape(2, 12).tolist()
    turned = evaluate("transpose", x, axes=(2, 0, 1))
    assert all(turned[k, i, j] == x[i, j, k] for i in range(2) for j in range(3) for k in range(4))
    assert evaluate("slice", x, axis=-1, start=1, stop=4, step=2)[0, 0].tolist() == [1, 3]
    assert evaluate("concat", x, x[:, :1], axis=1).shape == (2, 4, 4)


def test_gathers() -> None:
    table, ids = normal(6, 3), np.array([5, 0, 5], np.int32)
    assert np.array_equal(evaluate("take", table, ids), [table[5], table[0], table[5]])
    along = np.array([[2, 0], [1, 1], [0, 2]], np.int32)
    rows = table[:3]
    assert np.array_equal(evaluate("take_along", rows, along), [[rows[i, j] for j in along[i]] for i in range(3)])


def test_put_along_writes_into_zeros() -> None:
    ids = np.array([[3, 0], [1, 2]], np.int32)
    values = np.array([[5, 6], [7, 8]], np.float32)
    assert evaluate("put_along", ids, values, size=4).tolist() == [[6, 0, 0, 5], [0, 7, 8, 0]]
    assert evaluate("put_along", ids, np.array(1, np.float32), size=4).tolist() == [[1, 0, 0, 1], [0, 1, 1, 0]]


@given(st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=9), st.data())
def test_top_k_prefers_the_lower_index_among_equals(row: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(row)))
    expected = sorted(range(len(row)), key=lambda index: (-row[index], index))[:k]
    assert evaluate("top_k", np.array([row], np.float32), k=k).tolist() == [expected]


@given(st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=9), st.integers(1, 12))
def test_top_k_mask_has_the_top_k_without_what_is_excluded(row: list[float], k: int) -> None:
    best = sorted(range(len(row)), key=lambda index: (-row[index], index))[:k]
    expected = [index in best and row[index] > -np.inf for index in range(len(row))]
    assert evaluate("top_k_mask", np.array([row], np.float32), k=k).tolist() == [expected]


def test_chosen_mask_has_the_chosen_positions_of_the_own_sequence() -> None:
    page_table, sequence = np.array([[7, 2], [0, 5]], np.int32), np.array([1, 0, 1], np.int32)
    chosen = np.array([[0, 6, -1], [-1, -1, -1], [1, 3, 7]], np.int32)
    mask = evaluate("chosen_mask", chosen, sequence, page_table, page_size=4)
    assert [np.flatnonzero(row).tolist() for row in mask] == [[8, 14], [], [9, 11, 15]]


def test_slots_follow_the_page_table() -> None:
    page_table = np.array([[7, 2], [0, 5]], np.int32)
    positions, sequence = np.array([0, 17, 3, 31], np.int32), np.array([0, 0, 1, 1], np.int32)
    slots = evaluate("token_slots", positions, sequence, page_table, page_size=16)
    assert slots.tolist() == [7 * 16, 2 * 16 + 1, 3, 5 * 16 + 15]
    context = evaluate("context_slots", page_table, page_size=16)
    assert context.tolist() == [page * 16 + offset for page in (7, 2, 0, 5) for offset in range(16)]
    mask = evaluate("context_mask", positions, sequence, page_table, page_size=16)
    for token in range(4):
        seen = {int(slot) for slot, visible in zip(context, mask[token], strict=True) if visible}
        pages = page_table[sequence[token]]
        assert seen == {int(pages[p // 16]) * 16 + p % 16 for p in range(positions[token] + 1)}


def test_scatter_rows_keeps_the_other_rows_and_the_dtype() -> None:
    import ml_dtypes

    cache, rows = normal(5, 2).astype(ml_dtypes.bfloat16), normal(2, 2)
    written = evaluate("scatter_rows", cache, np.array([4, 1]), rows)
    assert written.dtype == cache.dtype
    assert np.array_equal(written[[4, 1]], rows.astype(cache.dtype))
    assert np.array_equal(written[[0, 2, 3]], cache[[0, 2, 3]])


@pytest.mark.parametrize(
    ("op", "types", "attrs", "reason"),
    [
        ("add", ("f32[T]", "i32[T]"), {}, "operands are f32"),
        ("mul", ("f32[T, 3]", "f32[T, 4]"), {}, "dims 3 and 4 do not broadcast"),
        ("cast", ("f32[T]",), {"dtype": "bf16"}, "cast is among f32, i32, bool"),
        ("where", ("f32[T]", "f32[T]", "f32[T]"), {}, "the mask is bool"),
        ("where", ("bool[T]", "i32[T]", "i32[T]"), {}, "operands are f32"),
        ("mean", ("i32[T, 2]",), {"axis": 0, "keepdims": True}, "operands are f32"),
        ("sum", ("f32[T, 2]",), {"axis": 2, "keepdims": True}, "index out of range"),
        ("softmax", ("i32[T]",), {}, "operands are f32"),
        ("matmul", ("f32[T, 3]", "f32[4, 5]"), {}, "the inner dims 3 and 4 differ"),
        ("matmul", ("f32[3]", "f32[3, 5]"), {}, "two dims or more"),
        ("linear", ("f32[T, 3]", "f32[3]"), {}, r"the weight is \[..., N, K\]"),
        ("linear", ("f32[3]", "f32[4, 3]"), {}, r"x is \[..., T, K\]"),
        ("linear", ("f32[T, 3]", "f32[5, 4]"), {}, "x has 3 columns, the weight 4"),
        ("reshape", ("f32[T, 4]",), {"shape": ("T", 5)}, "does not hold as many elements"),
        ("reshape", ("f32[T, 4]",), {"shape": ("R", 4)}, "does not hold as many elements"),
        ("reshape", ("i32[S, P]",), {"shape": ("P", "S")}, "more than one symbolic dim"),
        ("reshape", ("int8[4, 4]",), {"shape": (16,)}, "operands are plain arrays"),
        ("transpose", ("f32[T, 4]",), {"axes": (0, 0)}, "is no permutation of the axes"),
        ("transpose", ("f32[4, 4]@rows16",), {"axes": (1, 0)}, "operands are plain arrays"),
        ("slice", ("f32[T, 4]",), {"axis": -1, "start": 2, "stop": 5}, "2:5 is outside of dim 4"),
        ("slice", ("f32[T, 4]",), {"axis": 0, "start": 0, "stop": 1}, "0:1 is outside of dim T"),
        ("slice", ("f32[T, 4]",), {"axis": 1, "start": 0, "stop": 4, "step": 0}, "the step is 0"),
        ("slice", ("q8-g32[T, 64]",), {"axis": 1, "start": 0, "stop": 32}, "operands are plain arrays"),
        ("concat", ("f32[T, 4]", "f32[T, 4]"), {"axis": 0}, "the joined dims have known sizes"),
        ("concat", ("f32[T, 4]", "f32[R, 4]"), {"axis": 1}, "does not join"),
        ("concat", ("f32[T, 4]", "i32[T, 4]"), {"axis": 1}, "operands are f32"),
        ("take", ("f32[9, 4]", "f32[T]"), {}, r"ids are i32\[M\]"),
        ("take", ("f32[9, 4]", "i32[T, 2]"), {}, r"ids are i32\[M\]"),
        ("scale_rows", ("f32[T, 4]", "f32[3]", "i32[R]"), {"block": 4}, r"positions are i32\[T\]"),
        ("scale_rows", ("f32[T, 4]", "f32[3]", "i32[T]"), {"block": 0}, r"factors are \[B\]"),
        ("top_k_mask", ("f32[T, 4]",), {"k": 0}, "cannot pick 0"),
        ("chosen_mask", ("f32[T, 4]", "i32[T]", "i32[S, P]"), {"page_size": 4}, "operands are i32"),
        ("chosen_mask", ("i32[T, 4]", "i32[R]", "i32[S, P]"), {"page_size": 4}, r"positions and sequence are \[T\]"),
        ("take_along", ("f32[T, 4]", "i32[R, 2]"), {}, "agree in all but the last dim"),
        ("take_along", ("f32[T, 4]", "f32[T, 2]"), {}, "ids are i32"),
        ("put_along", ("i32[T, 2]", "f32[T, 3]"), {"size": 8}, "do not broadcast"),
        ("put_along", ("i32[2]", "f32[T, 2]"), {"size": 8}, "does not broadcast to"),
        ("top_k", ("f32[T, 4]",), {"k": 5}, "cannot pick 5 of 4"),
        ("top_k", ("f32[T]",), {"k": 1}, "cannot pick 1 of T"),
        ("token_slots", ("i32[T]", "i32[R]", "i32[S, P]"), {"page_size": 16}, r"positions and sequence are \[T\]"),
        ("token_slots", ("i32[T]", "i32[T]", "i32[S]"), {"page_size": 16}, r"the page table is \[S, P\]"),
        ("context_mask", ("f32[T]", "i32[T]", "i32[S, P]"), {"page_size": 16}, "operands are i32"),
        ("scatter_rows", ("f32[N, 4]", "i32[T]", "f32[T, 5]"), {}, "do not fit the cache"),
        ("scatter_rows", ("f32[N, 4]", "i32[R]", "f32[T, 4]"), {}, "do not number the rows"),
        ("const", (), {"data": ((1.0,), (1.0, 2.0))}, "inhomogeneous"),
    ],
)
def test_wrong_operands_are_refused_with_a_reason(
    op: str, types: tuple[str, ...], attrs: dict[str, Any], reason: str
) -> None:
    with pytest.raises(TypeRuleError, match=reason):
        infer(op, *types, **attrs)
