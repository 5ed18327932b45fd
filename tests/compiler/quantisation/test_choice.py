"""Which method rounds a matrix, and what is said where it is another than was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.quantisation import choice
from dsv3c.compiler.quantisation.inputs import MatrixInputs
from dsv3c.compiler.quantisation.methods import METHODS

FORMAT = WeightFormat.parse("int4-g32")


@pytest.fixture
def w() -> Any:
    return np.random.default_rng(0).standard_normal((24, 64)).astype(np.float32)


def inputs(seed: int = 1, corrected: bool = False) -> MatrixInputs:
    """Rows whose columns have much in common, as activations do."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((300, 64)).astype(np.float32) @ rng.standard_normal((64, 64)).astype(np.float32)
    plain = rows + rng.standard_normal(rows.shape).astype(np.float32)
    return MatrixInputs(300, rows.T @ rows / 300, rows.T @ plain / 300 if corrected else None)


def cost(w: Any, codes: Any, met: MatrixInputs) -> float:
    """Of the outputs: what is between Wx and Ŵx̂, less what is the same for all Ŵ."""
    values = codes.dequantize()
    if met.cross is None:
        return float(np.sum((w - values) @ met.gram * (w - values)))
    return float(np.sum(values @ met.gram * values) - 2 * np.sum(values @ met.cross * w))


@pytest.mark.parametrize("corrected", [False, True])
def test_auto_takes_the_method_of_least_output_error(corrected: bool, w: Any) -> None:
    met = inputs(corrected=corrected)
    names = [name for name in ("rtn", *METHODS) if corrected or name != "qronos"]
    alone = {name: choice.round_weight(w, FORMAT, name, [met])[0] for name in names}
    codes, (outcome,) = choice.round_weight(w, FORMAT, "auto", [met])
    assert outcome.method == min(alone, key=lambda name: cost(w, alone[name], met))
    assert np.array_equal(codes.codes, alone[outcome.method].codes)
    assert outcome.reason == ""


@pytest.mark.parametrize("method", ["gptq", "qronos", "auto"])
def test_statistics_that_are_not_its_own_are_for_the_search(method: str, w: Any) -> None:
    codes, (outcome,) = choice.round_weight(w, FORMAT, method, [inputs()], "it saw 3 tokens of 32")
    assert (outcome.method, outcome.reason) == ("search", "it saw 3 tokens of 32")
    assert np.array_equal(codes.codes, choice.round_weight(w, FORMAT, "search", [inputs()])[0].codes)


def test_a_hessian_without_a_factor_falls_back_to_the_search(w: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise np.linalg.LinAlgError("the matrix is not positive definite")

    monkeypatch.setattr(np.linalg, "cholesky", fails)
    for method in ("gptq", "auto"):
        _, (outcome,) = choice.round_weight(w, FORMAT, method, [inputs()])
        assert outcome.method == "search"
        assert "not positive definite" in outcome.reason


def test_matrices_of_one_weight_have_inputs_of_their_own_or_in_common(w: Any) -> None:
    both = np.stack([w, w[::-1]])
    apart, outcomes = choice.round_weight(both, FORMAT, "gptq", [inputs(1), inputs(2)])
    assert len(outcomes) == 2
    for number, met in enumerate((inputs(1), inputs(2))):
        alone, (outcome,) = choice.round_weight(both[number], FORMAT, "gptq", [met])
        assert np.array_equal(apart.codes[number], alone.codes)
        assert outcomes[number] == outcome
    common, _ = choice.round_weight(both, FORMAT, "gptq", [inputs(1)])
    assert np.array_equal(common.codes[1], choice.round_weight(both[1], FORMAT, "gptq", [inputs(1)])[0].codes)


def test_the_error_that_is_told_is_the_outputs(w: Any) -> None:
    met = inputs()
    codes, (outcome,) = choice.round_weight(w, FORMAT, "rtn", [met])
    error = w - codes.dequantize()
    assert outcome.error == pytest.approx(float(np.sum(error @ met.gram * error)), rel=1e-4)
    assert outcome.power == pytest.approx(float(np.sum(w @ met.gram * w)), rel=1e-4)
