"""Processors and filters against those of transformers, on logits of the bundled model: the same ids are left, with the
same probabilities.

The stored scores were made by `python -m tests.conformance.make_engine_goldens`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from dsv3c.runtime.engine.history import History
from dsv3c.runtime.engine.params import SamplingParams
from dsv3c.runtime.engine.sampling import Sampler
from tests.conftest import GOLDENS

LIMIT = 1e-5
PATH = GOLDENS / "engine" / "processors.npz"


@functools.cache
def stored() -> Mapping[str, Any]:
    with np.load(PATH) as file:
        return dict(file)


def cases() -> dict[str, Any]:
    with np.load(PATH) as file:
        found: dict[str, Any] = json.loads(str(file["cases"]))
        return found


def scores_of(file: Mapping[str, Any], case: str, text: int) -> Any:
    """f32 [V]: what transformers makes of the logits of a text."""
    scores = file[f"logits.{text}"].copy()
    banned, changed = (
        np.unpackbits(file[f"{case}.{text}.{what}"], count=scores.size).astype(bool) for what in ("banned", "changed")
    )
    scores[banned] = -np.inf
    scores[changed] = file[f"{case}.{text}.values"]
    return scores


def probabilities(scores: Any) -> Any:
    weights = np.exp(scores.astype(np.float64) - scores.max())
    return weights / weights.sum()


@pytest.mark.parametrize("text", range(3))
@pytest.mark.parametrize("case", cases())
def test_distribution_is_that_of_transformers(case: str, text: int) -> None:
    file = stored()
    params = SamplingParams().updated(cases()[case])
    history = History(file[f"prompt.{text}"], file[f"answer.{text}"])
    logits = file[f"logits.{text}"]
    found = Sampler(params, logits.size, frozenset(file["end_tokens"].tolist())).scores(logits, history)
    expected = scores_of(file, case, text)
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(expected))
    np.testing.assert_allclose(probabilities(found), probabilities(expected), rtol=0, atol=LIMIT)
    kept = found > -np.inf
    np.testing.assert_allclose(found[kept], expected[kept], rtol=1e-6)


@pytest.mark.parametrize("case", cases())
def test_a_case_changes_something(case: str) -> None:
    """Or a processor that does nothing would pass."""
    file = stored()
    assert any((scores_of(file, case, text) != file[f"logits.{text}"]).any() for text in range(3))
