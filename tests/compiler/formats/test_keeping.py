"""Which formats hold the codes of a checkpoint, and what becomes of codes that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dsv3c.compiler.formats import coded, fp8, keeping
from dsv3c.compiler.formats.elements import as_float32
from dsv3c.compiler.formats.keeping import Coding, Loss
from dsv3c.compiler.formats.quant import OutOfRange, quantize, to_plain
from dsv3c.compiler.formats.table import FORMATS, WeightFormat


def integers(rows: int, columns: int, group: int, bits: int = 4, asymmetric: bool = False) -> Any:
    random = np.random.default_rng(rows + columns)
    out = np.empty((rows, columns), coded.INTEGERS)
    out["code"] = random.integers(0, 1 << bits, out.shape)
    groups = np.arange(columns) // group
    shape = (rows, groups[-1] + 1)
    out["scale"] = random.uniform(0.1, 1, shape).astype(np.float16)[:, groups]
    out["zero"] = random.integers(0, 1 << bits, shape)[:, groups] if asymmetric else 1 << (bits - 1)
    return out


FITS = {
    "int4-g32": (Coding(coded.INTEGERS, 4, 32), {"int4-g32", "int4-g32-asym", "int5-g32", "int8-g32"}),
    "groups of 64": (Coding(coded.INTEGERS, 4, 64), {"int4-g32", "int4-g64", "int8-g64"}),
    "3 bits": (Coding(coded.INTEGERS, 3, 128), {"int4-g128", "int8-g32"}),
    "asymmetric": (Coding(coded.INTEGERS, 4, 32, symmetric=False), {"int4-g32-asym"}),
    "channels": (Coding(coded.INTEGERS, 8, 0), {"int8", "int8-g128"}),
    "fp8": (Coding(fp8.CODED, 8, 128), {"fp8"}),
    "fp8 channels": (Coding(fp8.CODED, 8, 0), {"fp8"}),
}
LACKS = {
    "int4-g32": {"int4-g64", "int8", "fp8", "bfloat16"}, "groups of 64": {"int4-g128", "int8"}, "3 bits": {"int8"},
    "asymmetric": {"int4-g32", "int8-g32"}, "channels": {"int5-g32", "int4-g128"}, "fp8": {"int8", "float32"},
    "fp8 channels": {"int8"},
}  # fmt: skip


@pytest.mark.parametrize("case", FITS)
def test_a_format_holds_codes_of_as_many_bits_and_groups_that_it_divides(case: str) -> None:
    coding, held = FITS[case]
    assert held <= {row.name for row in FORMATS.values() if coding.fits(row)}
    assert not {name for name in LACKS[case] if coding.fits(WeightFormat.parse(name))}
    smallest = coding.format(lambda row: row.name in held | LACKS[case])
    assert smallest is not None and smallest.bits_per_weight() == min(
        WeightFormat.parse(name).bits_per_weight() for name in held
    )


def test_scattered_groups_fit_nowhere() -> None:
    assert Coding(coded.INTEGERS, 4, None).format(lambda row: True) is None


@pytest.mark.parametrize("shape", [(5, 64), (3, 70), (40, 2, 33)])
@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-asym", "int5-g32", "int8-g32"])
def test_codes_are_kept_for_any_width(shape: tuple[int, ...], name: str) -> None:
    w = integers(int(np.prod(shape[:-1])), shape[-1], 32).reshape(shape)
    stored = quantize(w, WeightFormat.parse(name))
    np.testing.assert_array_equal(stored.dequantize(), as_float32(w))
    assert stored.loss == Loss()
    if name.startswith("int4"):
        np.testing.assert_array_equal(stored.codes[..., : shape[-1]], w["code"])
    padding = stored.codes[..., shape[-1] :].astype(int)
    zero = 1 << (stored.format.grid.bits - 1) if stored.zero is None else 8
    assert (padding == zero).all()


def test_zeros_of_groups_are_kept() -> None:
    w = integers(6, 100, 32, asymmetric=True)
    stored = quantize(w, WeightFormat.parse("int4-g32-asym"))
    np.testing.assert_array_equal(stored.codes[:, :100], w["code"])
    np.testing.assert_array_equal(stored.zero, w["zero"][:, [0, 32, 64, 96]])
    np.testing.assert_array_equal(stored.dequantize(), as_float32(w))


def test_one_row_that_does_not_fit_is_rounded_and_the_others_stay() -> None:
    w, format = integers(6, 64, 32), WeightFormat.parse("int4-g32")
    w["scale"][2, 40] *= 2
    w["zero"][4, :32] = 0  # codes up to 15 above it
    w["code"][4, 0] = 15
    stored = quantize(w, format)
    assert stored.loss == Loss(rows=2)
    kept = [0, 1, 3, 5]
    np.testing.assert_array_equal(stored.codes[kept], w["code"][kept])
    anew = quantize(as_float32(w[[2, 4]]), format)
    np.testing.assert_array_equal(stored.codes[[2, 4]], anew.codes)
    np.testing.assert_array_equal(stored.scale[[2, 4]], anew.scale)


def test_a_weight_is_held_when_most_of_its_rows_fit() -> None:
    w, format = integers(8, 64, 32), WeightFormat.parse("int4-g32")
    w["scale"][:3, 5] *= 2
    assert keeping.holds(w, format) and keeping.holds(w.reshape(2, 4, 64), format)
    assert not keeping.holds(np.ascontiguousarray(w.T), format)
    assert not keeping.holds(w, WeightFormat.parse("fp8"))


def test_the_lowest_code_of_eight_bits_is_rounded() -> None:
    """int8 has no -128, so that products of its codes stay below 2^15."""
    w = integers(3, 128, 128, bits=8)
    w["code"] = np.maximum(w["code"], 1)
    w["code"][1, 5] = 0
    assert quantize(w, WeightFormat.parse("int8")).loss == Loss(rows=1)


def test_scales_that_float16_rounds_are_counted() -> None:
    w = integers(4, 64, 32)
    w["scale"][1, :32], w["scale"][3, 32:] = 0.1, 1e-9
    stored = quantize(w, WeightFormat.parse("int4-g32"))
    assert stored.loss == Loss(scales=2)
    np.testing.assert_array_equal(stored.codes, w["code"])


def test_a_scale_beyond_float16_is_an_error() -> None:
    w = integers(4, 64, 32)
    w["scale"][1, :32] = 1e6
    with pytest.raises(OutOfRange):
        quantize(w, WeightFormat.parse("int4-g32"))


def test_other_formats_take_the_numbers() -> None:
    w = integers(4, 64, 32, asymmetric=True)
    np.testing.assert_array_equal(to_plain(w, WeightFormat.parse("float32")), as_float32(w))
    stored = quantize(w, WeightFormat.parse("fp8"))
    assert stored.loss == Loss(rows=4)
    np.testing.assert_array_equal(stored.codes, quantize(as_float32(w), WeightFormat.parse("fp8")).codes)


def test_the_numbers_of_four_bits_are_those_of_ml_dtypes() -> None:
    import ml_dtypes

    w = np.empty((256, 16), coded.E2M1)
    w["code"], w["scale"] = np.arange(16), np.arange(256)[:, None]
    numbers = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    powers = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(as_float32(w), numbers * powers[:, None])


def test_mxfp4_is_kept_where_groups_have_one_exponent() -> None:
    row = WeightFormat.parse("mxfp4")
    random = np.random.default_rng(0)
    w = np.empty((4, 48), coded.E2M1)
    w["code"] = random.integers(0, 16, w.shape)
    w["scale"] = random.integers(100, 140, (4, 2))[:, np.arange(48) // 32]
    w["scale"][2, 3] += 1
    found = keeping.keep(w, row)
    assert found is not None and found.fits.tolist() == [True, True, False, True]
    np.testing.assert_array_equal(found.rounded.codes[found.fits, :48], w["code"][found.fits])
    np.testing.assert_array_equal(found.rounded.scale.view(np.uint8)[found.fits], w["scale"][found.fits][:, [0, 32]])
