"""Codes that stand for floats: nearest codes, MXFP4 by the rules of OCP MX v1.0, and the sixteen numbers of NF4."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dsv3c.compiler.formats import coded as kinds
from dsv3c.compiler.formats import mx
from dsv3c.compiler.formats.elements import as_float32
from dsv3c.compiler.formats.grids import E2M1, E4M3, NF4, Grid
from dsv3c.compiler.formats.quant import OutOfRange, quantize
from dsv3c.compiler.formats.table import WeightFormat

MXFP4, NF4_G64 = WeightFormat.parse("mxfp4"), WeightFormat.parse("nf4-g64")


def normal(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("grid", [E4M3(), E2M1(), NF4()], ids=str)
def test_encoding_takes_the_nearest_number_and_leaves_numbers_alone(grid: Grid) -> None:
    numbers = grid.values(np.arange(1 << grid.bits, dtype=np.uint8), None)
    finite = numbers[np.isfinite(numbers)]
    scaled = normal(3, 500) * np.float32(grid.largest(own_zeros=False) / 2)
    found = grid.values(grid.encode(scaled, None), None)
    best = np.abs(scaled[..., None] - finite).min(axis=-1)
    np.testing.assert_array_equal(np.abs(found - scaled), best)
    np.testing.assert_array_equal(grid.values(grid.encode(finite, None), None), finite)
    assert grid.values(np.array([grid.zero], np.uint8), None) == 0


@pytest.mark.parametrize("grid", [E2M1(), NF4()], ids=str)
def test_integers_of_a_grid_are_its_numbers_over_their_size(grid: E2M1 | NF4) -> None:
    codes, steps = np.arange(16, dtype=np.uint8), grid.steps
    integers = np.array(steps.table) - steps.zero
    np.testing.assert_allclose(integers * steps.size, grid.values(codes, None), rtol=1e-7)
    assert integers[grid.zero] == 0 and min(steps.table) >= 0 and max(steps.table) < 256


def test_the_numbers_of_e2m1() -> None:
    magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    expected = [*magnitudes, *(-number for number in magnitudes)]
    np.testing.assert_array_equal(E2M1().values(np.arange(16, dtype=np.uint8), None), expected)


def test_ties_of_e2m1_go_to_even_codes_and_what_is_beyond_becomes_the_largest() -> None:
    found = E2M1().encode(np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -5, 7.9], np.float32), None)
    np.testing.assert_array_equal(found, [0, 2, 2, 4, 4, 6, 6, 14, 7])


@pytest.mark.parametrize(
    ("largest", "exponent"), [(6, 0), (7.99, 0), (8, 1), (4, 0), (3.99, -1), (1e-45, -127), (0, -127), (3e38, 125)]
)
def test_the_scale_of_mxfp4_is_the_power_of_two_of_the_standard(largest: float, exponent: int) -> None:
    """floor(log2(largest)) - 2, no lower than the least."""
    w = np.zeros((1, 32), np.float32)
    w[0, 7] = -largest
    assert quantize(w, MXFP4).scale.view(np.uint8) == [[exponent + 127]]


def test_an_infinity_in_mxfp4_is_refused() -> None:
    with pytest.raises(OutOfRange):
        quantize(np.array([[1, np.inf]], np.float32), MXFP4)


def coded(n: int, k: int) -> Any:
    random = np.random.default_rng(n + k)
    out = np.empty((n, k), kinds.E2M1)
    out["code"] = random.integers(0, 16, (n, k))
    out["scale"] = random.integers(30, 220, (n, -(-k // 32)))[:, np.arange(k) // 32]
    return out


@pytest.mark.parametrize("shape", [(5, 64), (3, 70), (1, 31)])
def test_codes_and_scales_of_mxfp4_are_kept(shape: tuple[int, int]) -> None:
    w = coded(*shape)
    found = quantize(w, MXFP4)
    np.testing.assert_array_equal(found.codes[:, : shape[1]], w["code"])
    np.testing.assert_array_equal(found.scale.view(np.uint8), w["scale"][:, ::32])
    np.testing.assert_array_equal(found.dequantize(), as_float32(w))


def test_only_rows_with_several_scales_in_a_group_are_rounded_anew() -> None:
    w = coded(4, 64)
    w["scale"] = 120
    w["scale"][2, 40] = 123
    found, values = quantize(w, MXFP4), as_float32(w)
    kept = [0, 1, 3]
    np.testing.assert_array_equal(found.codes[kept], w["code"][kept])
    np.testing.assert_array_equal(found.codes[2], quantize(values[2:3], MXFP4).codes[0])


def test_a_scale_that_is_no_number_is_refused() -> None:
    w = coded(2, 32)
    w["scale"][1] = mx.NAN
    with pytest.raises(OutOfRange):
        quantize(w, MXFP4)


def test_the_numbers_of_nf4_are_the_quantiles_of_a_normal_distribution_in_127ths() -> None:
    """Its formula: the means of neighbours among evenly spaced probabilities, 8 below zero and 9 from it on."""
    from statistics import NormalDist

    end = 0.5 * (1 / 32 + 1 / 30)
    positive = [NormalDist().inv_cdf(p) for p in np.linspace(1 - end, 0.5, 9)[:-1]]
    negative = [-NormalDist().inv_cdf(p) for p in np.linspace(1 - end, 0.5, 8)[:-1]]
    expected = np.sort([*positive, *negative, 0]) / max(positive)
    numbers = NF4().values(np.arange(16, dtype=np.uint8), None)
    np.testing.assert_allclose(numbers * 127, np.rint(expected * 127), atol=1e-5)


@pytest.mark.parametrize("magnitude", [1, 1e-5, 3e-8])
def test_nf4_errs_by_half_the_widest_gap_at_most(magnitude: float) -> None:
    w = normal(40, 70) * np.float32(magnitude)
    found = quantize(w, NF4_G64)
    assert found.scale.shape == (40, 2) and found.scale.dtype == np.float16
    scale = np.repeat(found.scale.astype(np.float32), 64, axis=1)[:, :70]
    assert (np.abs(found.dequantize() - w) <= scale * (0.152 + 1 / 256)).all()
