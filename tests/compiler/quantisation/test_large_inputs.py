"""Hessians that are too large for copies in float64."""

from __future__ import annotations

import numpy as np
import pytest

from dsv3c.compiler.quantisation import inputs
from dsv3c.compiler.quantisation.inputs import factored


@pytest.mark.parametrize("size", [255, 256, 600])
def test_factors_of_many_inputs_are_those_of_few_but_for_the_precision(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(size).standard_normal((2 * size, size)).astype(np.float32)
    gram = rows.T @ rows / (2 * size)
    exact = factored(gram)
    monkeypatch.setattr(inputs, "_MOST_EXACT", 0)
    found = factored(gram)
    assert np.allclose(found.carry, exact.carry, atol=1e-4)
    assert np.allclose(found.cost, exact.cost, rtol=1e-4)
    assert np.allclose(found.hessian, exact.hessian, atol=1e-6)


def test_a_large_gram_that_has_no_factor_is_damped_until_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_MOST_EXACT", 0)
    rows = np.random.default_rng(0).standard_normal((3, 300)).astype(np.float32)
    gram = rows.T @ rows / 3
    assert np.isfinite(factored(gram, damping=0.0).carry).all()
