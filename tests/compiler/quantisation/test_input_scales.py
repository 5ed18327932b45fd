"""The search for scales of inputs, next to the paper's formulas written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsv3c.compiler.checkpoint import ModelConfig
from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import TensorType
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.quantisation import choice, input_scales
from dsv3c.compiler.quantisation.folding import Folding
from dsv3c.compiler.quantisation.inputs import MatrixInputs
from tests.checkpoints import tiny_config
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
    for alpha, found in zip(input_scales.ALPHAS, input_scales.candidates(met, input_scales.ALPHAS), strict=True):
        size = [np.sqrt(np.mean([float(row[k]) ** 2 for row in x])) for k in range(x.shape[1])]
        powers = [each**alpha for each in size]
        middle = np.sqrt(max(powers) * min(powers))
        np.testing.assert_allclose(found, [each / middle for each in powers], rtol=1e-3)


def test_an_input_that_is_always_0_has_a_finite_scale() -> None:
    x, _ = inputs()
    x[:, 5] = 0
    for found in input_scales.candidates(MatrixInputs(len(x), x.T @ x / np.float32(len(x))), input_scales.ALPHAS):
        assert np.isfinite(found).all() and (found > 0).all()
    nothing = MatrixInputs(0, np.zeros((8, 8), np.float32))
    assert all((found == 1).all() for found in input_scales.candidates(nothing, input_scales.ALPHAS))


def test_errors_are_those_of_the_outputs_with_the_inputs_divided() -> None:
    x, met = inputs()
    w = matrix()
    scales = input_scales.candidates(met, input_scales.ALPHAS)
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
    found = input_scales.errors(w, FORMAT, met, input_scales.candidates(met, input_scales.ALPHAS))
    _, (plain,) = choice.round_weight(w, FORMAT, "search", [met])
    assert found[0] == pytest.approx(plain.error, rel=1e-4)
    assert found.min() < 0.9 * plain.error  # with inputs that differ so much they gain


def test_scales_that_a_format_can_not_hold_are_not_taken() -> None:
    _, met = inputs()
    w = matrix() * 6e4
    found = input_scales.errors(w, FORMAT, met, [np.ones(64, np.float32), np.full(64, 1e4, np.float32)])
    assert np.isfinite(found[0]) and found[1] == np.inf


def looked_at(format: str) -> Folding:
    """After a search that saw two matrices of a dense layer: `gate` with `up`, and `down`."""
    config = ModelConfig.from_dict(tiny_config("youtu", num_hidden_layers=1), Path("config.json"))
    gate, up, down = (
        ops.leaf("param", f"model.layers.0.mlp.{name}_proj.weight", TensorType("f32", shape))
        for name, shape in (("gate", (96, 64)), ("up", (96, 64)), ("down", (64, 96)))
    )
    joined, folding = ops.apply("concat", (gate, up), {"axis": 0}), Folding()
    formats = {weight: [WeightFormat.parse(format)] for weight in (joined, down)}
    search = input_scales.ScaleSearch(config, formats, folding)
    for weight in (joined, down):
        n, k = map(int, weight.shape)
        search.look(weight, None, matrix(n, k), [inputs(k=k)[1]], "")
    search.fold()
    return folding


@pytest.mark.parametrize("format", ["int4-g32", "int8"])
def test_all_that_reads_the_inputs_has_their_scales(format: str) -> None:
    folding = looked_at(format)
    ones = {"gate": (96, 64), "up": (96, 64), "down": (64, 96)}
    read = folding.reading(lambda name, expert: np.ones(ones[name.split(".")[-2].split("_")[0]], np.float32))
    gate, up, down = (read(f"model.layers.0.mlp.{name}_proj.weight", None) for name in ones)
    assert (gate[0] != 1).any() and (down[0] != 1).any()
    np.testing.assert_allclose(up, gate / down[0][:, None], rtol=1e-5)


def test_rows_that_share_a_scale_with_all_others_are_not_divided() -> None:
    folding = looked_at("int8-tensor")
    assert folding.multiplies("model.layers.0.mlp.gate_proj.weight", None)
    assert not folding.multiplies("model.layers.0.mlp.down_proj.weight", None)
