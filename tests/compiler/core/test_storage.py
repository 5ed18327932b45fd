from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Value, parse_graph, parse_type
from dsv3c.compiler.core.ops.weight import Packed, QRows
from dsv3c.compiler.core.storage import Component, aligned, components, memory_owner, strided
from dsv3c.compiler.errors import NotAViewError
from dsv3c.compiler.formats.elements import NUMPY_DTYPES

BOUNDS = {"T": 3, "S": 2, "P": 2}
FORMATS = (
    "float32",
    "float16",
    "bfloat16",
    "int8",
    "int8-g64",
    "int4-g32",
    "int4-g128",
    "int4-g32-asym",
    "int5-g32",
    "int3-g16",
)


def test_plain_values_are_one_array() -> None:
    assert components(parse_type("f32[2*T, 5]"), BOUNDS) == (Component("data", "f32", (6, 5)),)
    assert components(parse_type("i32[16*P*S]"), BOUNDS) == (Component("data", "i32", (64,)),)
    assert components(parse_type("bool[]"), BOUNDS)[0].nbytes == 1


def test_an_int8_embedding_is_signed_rows_with_a_scale_each() -> None:
    expected = (Component("data", "i8", (9, 5)), Component("scale", "f32", (9,)))
    assert components(parse_type("int8[9, 5]"), {}) == expected


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(5, 40), (2, 17, 33), (3, 2, 16, 128)])
def test_packed_weights_are_stored_as_they_evaluate(format: str, shape: tuple[int, ...]) -> None:
    weight = ops.leaf("param", "w", parse_type(f"f32[{', '.join(map(str, shape))}]"))
    value = ops.apply("pack", (ops.apply("quantize", (weight,), {"format": format}),), {"layout": "rows16"})
    (packed,) = ops.evaluate([value], lambda _: np.ones(shape, np.float32))
    assert isinstance(packed, Packed)
    assert_stored_as(packed.components, components(value.type, {}))


@pytest.mark.parametrize("k", [32, 40, 128, 129])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_quantised_activations_are_stored_as_they_evaluate(k: int, group: int) -> None:
    x = ops.leaf("input", "x", parse_type(f"f32[T, 2, {k}]"))
    value = ops.apply("quantize_rows", (x,), {"group": group})
    (rows,) = ops.evaluate([value], lambda _: np.ones((3, 2, k), np.float32))
    assert isinstance(rows, QRows)
    assert_stored_as({"data": rows.data, "scale": rows.scale, "sum": rows.sum}, components(value.type, BOUNDS))


def assert_stored_as(arrays: dict[str, Any], expected: tuple[Component, ...]) -> None:
    found = {role: (array.dtype, array.shape) for role, array in arrays.items()}
    assert found == {part.role: (NUMPY_DTYPES[part.dtype], part.shape) for part in expected}
    assert list(arrays) == [part.role for part in expected]
    assert [array.nbytes for array in arrays.values()] == [part.nbytes for part in expected]


@given(st.integers(0, 1 << 40))
def test_sizes_are_rounded_up_to_whole_cache_lines(nbytes: int) -> None:
    assert aligned(nbytes) % 64 == 0
    assert 0 <= aligned(nbytes) - nbytes < 64


VIEWS = parse_graph(
    """graph g {
  %x: f32[T, 48] = input()
  %1: f32[T, 24] = slice(%x) {"axis": -1, "start": 8, "stop": 32}
  %2: f32[T, 3, 8] = reshape(%1) {"shape": ["T", 3, 8]}
  %3: f32[T, 3, 2] = slice(%2) {"axis": 2, "start": 5, "stop": 7}
  %4: f32[T, 1, 2] = slice(%3) {"axis": 1, "start": 2, "stop": 3}
  %5: f32[T, 2, 3, 4] = reshape(%1) {"shape": ["T", 2, 3, 4]}
  %6: f32[T, 12] = slice(%1) {"axis": 1, "start": 0, "stop": 24, "step": 2}
  %7: f32[T, 6] = reshape(%3) {"shape": ["T", 6]}
  %8: f32[8*T, 6] = reshape(%x) {"shape": ["8*T", 6]}
  %9: f32[T, 48] = sin(%x)
  return a=%1, b=%2, c=%3, d=%4, e=%5, stepped=%6, torn=%7, regrouped=%8, copy=%9
}"""
)


def test_a_value_of_its_own_is_contiguous() -> None:
    assert strided(VIEWS.result("copy")) == (0, (48, 1))
    assert strided(VIEWS.result("copy").inputs[0]) == (0, (48, 1))


@pytest.mark.parametrize("name", ["a", "b", "c", "d", "e"])
def test_strided_reads_what_the_view_evaluates_to(name: str) -> None:
    value = VIEWS.result(name)
    memory = np.arange(3 * 48, dtype=np.float32)
    (expected,) = ops.evaluate([value], lambda _: memory.reshape(3, 48))
    at = strided(value)
    index = at.offset + sum(i * stride for i, stride in zip(np.indices(expected.shape), at.strides, strict=True))
    assert np.array_equal(memory[index], expected)
    assert at.strides[-1] == 1


@pytest.mark.parametrize("name", ["stepped", "torn", "regrouped"])
def test_what_strides_cannot_express_is_no_view(name: str) -> None:
    with pytest.raises(NotAViewError, match="cannot be read in place"):
        strided(VIEWS.result(name))


def test_unknown_inner_dims_are_no_view() -> None:
    with pytest.raises(NotAViewError):
        strided(ops.leaf("input", "x", parse_type("f32[4, T]")))


def test_views_and_in_place_results_live_in_the_memory_of_their_operand() -> None:
    graph = parse_graph(
        """graph g {
  %cache: f32[N, 4] = input()
  %slots: i32[T] = input()
  %rows: f32[T, 4] = input()
  %3: f32[N, 4] = scatter_rows(%cache, %slots, %rows)
  %4: f32[N, 2] = slice(%3) {"axis": 1, "start": 2, "stop": 4}
  %5: f32[T, 4] = take(%3, %slots)
  return view=%4, row=%5
}"""
    )
    owner: Value = memory_owner(graph.result("view"))
    assert owner.attrs["name"] == "cache"
    assert strided(graph.result("view")) == (2, (4, 1))
    assert memory_owner(graph.result("row")) == graph.result("row")
