"""Rows of codes: what they cost in exactness and in bytes, part by part."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dsv3c.compiler.formats.coded_rows import CodedRows, decode, encode, is_coded, row_bytes, stored

RANK, WIDTH = 32, 43


def rows() -> Any:
    return np.random.default_rng(0).standard_normal((50, WIDTH)).astype(np.float32)


def parts(array: Any) -> tuple[Any, Any]:
    return array[:, :RANK], array[:, RANK:]


def test_the_name_of_the_type_says_the_codes_and_where_the_second_scale_begins() -> None:
    coded = CodedRows.of_type("int8-at512")
    assert coded == CodedRows("int8", 512) and coded.type_name == "int8-at512"
    assert CodedRows.of_type("fp8-at32") == CodedRows("fp8", 32)
    assert [CodedRows.of_type(name) for name in ("int8", "int8-g32", "fp8-at0", "int4-at8", "bf16")] == [None] * 5


def test_a_row_has_a_byte_a_column_and_its_scales_in_whole_lines() -> None:
    assert [row_bytes(width) for width in (576, 144, 40, 41, 43)] == [592, 160, 48, 64, 64]
    dtype = CodedRows("int8", RANK).array_dtype(WIDTH)
    assert dtype.itemsize == 64 and dtype.fields is not None and dtype.fields["scales"][1] == 44
    assert is_coded(dtype) and not is_coded(np.dtype(np.int8))


def test_int8_is_off_by_half_a_step_of_its_part_at_most() -> None:
    x = rows()
    x[:, RANK:] *= 1e4  # does not coarsen the latent
    found = decode(encode(x, CodedRows("int8", RANK).array_dtype(WIDTH)))
    for got, want in zip(parts(found), parts(x), strict=True):
        step = np.abs(want).max(axis=1, keepdims=True) / 127
        assert (np.abs(got - want) <= 0.5001 * step).all()


def test_fp8_has_the_numbers_of_ml_dtypes() -> None:
    x = rows()
    coded = encode(x, CodedRows("fp8", RANK).array_dtype(WIDTH))
    for part, want in zip(("first", "rest"), parts(x), strict=True):
        scaled = want * (np.float32(448) / np.abs(want).max(axis=1, keepdims=True))
        np.testing.assert_array_equal(coded[part], scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))
    assert (np.abs(decode(coded) - x) <= np.abs(x) / 16 + 1e-3).all()


@pytest.mark.parametrize("codes", ["int8", "fp8"])
def test_zeros_have_scale_zero_and_huge_numbers_stay_finite(codes: str) -> None:
    x = np.zeros((3, WIDTH), np.float32)
    x[1, RANK:], x[2] = 1e-38, 3e38
    coded = encode(x, CodedRows(codes, RANK).array_dtype(WIDTH))
    assert (coded["scales"][:2] == 0).all()
    assert np.isfinite(decode(coded)).all() and (decode(coded)[:2] == 0).all()
    np.testing.assert_allclose(decode(coded)[2], 3e38, rtol=1e-6)


def test_plain_types_are_rounded_as_numpy_does() -> None:
    assert (stored(rows(), np.dtype(np.float16)) == rows().astype(np.float16)).all()
