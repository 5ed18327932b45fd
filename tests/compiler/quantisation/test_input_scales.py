"""The search for scales of inputs, next to the paper's formulas written out."""

from __future__ import annotations

import numpy as np
import pytest

from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.quantisation import choice, input_scales
from dsv3c.compiler.quantisation.inputs import MatrixInputs
from tests.compiler.quantisation.problems import correlated

FORMAT = WeightFormat.parse("int4-g32")


def inputs(seed: int = 1, k: int = 64) -> tuple[np.ndarray, MatrixInputs]:
    """Rows of which a few columns are far larger than the rest."""
    x = correlated(np.random.default_rng(seed), 200, k)
    x[:, :3] *= 20
    return x, MatrixInputs(len(x), x.T @ x / np.float32(len(x)))


def matrix(n: int = 48, k: int = 64) -> np.ndarray:
    return np.random.default_rng(9).standard_normal((n, k)).astype(np.float32)


def test_candidates_are_the_mean_input_to_each_power_around_one() -> None:
    x, met = inputs()
    for alpha, found in zip(input_scales.ALPHAS, input_scales.candidates(met), strict=True):
        size = [np.sqrt(np.mean([float(row[k]) ** 2 for row in x])) for k in range(x.shape[1])]
        powers = [each**alpha for each in size]
        middle = np.sqrt(max(powers) * min(powers))
        np.testing.assert_allclose(found, [each / middle for each in powers], rtol=1e-3)


def test_an_input_that_is_always_0_has_a_finite_scale() -> None:
    x, _ = inputs()
    x[:, 5] = 0
    for found in input_scales.candidates(MatrixInputs(len(x), x.T @ x / np.float32(len(x)))):
        assert np.isfinite(found).all() and (found > 0).all()
    nothing = MatrixInputs(0, np.zeros((8, 8), np.float32))
    assert all((found == 1).all() for found in input_scales.candidates(nothing))


def test_errors_are_those_of_the_outputs_with_the_inputs_divided() -> None:
    x, met = inputs()
    w = matrix()
    scales = input_scales.candidates(met)
    found = input_scales.errors(w, FORMAT, met, scales)
    for number in (0, 4, 10):
        scale = scales[number]
        divided = MatrixInputs(len(x), met.gram / scale / scale[:, None])
        rounded, _ = choice.round_weight(w * scale, FORMAT, "search", [divided])
        difference = (x / scale).astype(np.float64) @ rounded.dequantize().T - x.astype(np.float64) @ w.T
        assert found[number] == pytest.approx(np.square(difference).sum() / len(x), rel=1e-2)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_best_scales_are_never_worse_than_none(seed: int) -> None:
    _, met = inputs(seed)
    w = matrix()
    found = input_scales.errors(w, FORMAT, met, input_scales.candidates(met))
    _, (plain,) = choice.round_weight(w, FORMAT, "search", [met])
    assert found[0] == pytest.approx(plain.error, rel=1e-4)
    assert found.min() < 0.9 * plain.error  # with inputs that differ so much they gain


def test_scales_that_a_format_can_not_hold_are_not_taken() -> None:
    _, met = inputs()
    w = matrix() * 6e4
    found = input_scales.errors(w, FORMAT, met, [np.ones(64, np.float32), np.full(64, 1e4, np.float32)])
    assert np.isfinite(found[0]) and found[1] == np.inf
