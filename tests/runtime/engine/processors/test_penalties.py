"""Penalties and biases: their formulas on small rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dsv3c.runtime.engine.history import History
from dsv3c.runtime.engine.params import SamplingParams
from dsv3c.runtime.engine.processors import processors_for

INF = math.inf


def processed(logits: list[float], history: History, **params: Any) -> list[float]:
    row = np.array(logits, np.float32)
    for processor in processors_for(SamplingParams().updated(params), frozenset()):
        processor(row, history)
    found: list[float] = row.tolist()
    return found


def test_repetition_counts_prompt_and_answer_once() -> None:
    history = History([1, 1], [3])
    assert processed([1, 4, 2, -3, -INF], history, repetition_penalty=2) == [1, 2, 2, -6, -INF]
    assert processed([1, 4, 2, -3, -INF], History([4]), repetition_penalty=0.5) == [1, 4, 2, -3, -INF]


def test_frequency_and_presence_count_the_answer() -> None:
    history = History([0, 0], [2, 1, 2])
    assert processed([1, 1, 1], history, frequency_penalty=0.25) == [1, 0.75, 0.5]
    assert processed([1, 1, 1], history, presence_penalty=0.25) == [1, 0.75, 0.75]
    assert processed([1, 1, 1], history, frequency_penalty=-1, presence_penalty=0.5) == [1, 1.5, 2.5]
    assert processed([1, 1, 1], History([0]), frequency_penalty=1, presence_penalty=1) == [1, 1, 1]


def test_a_bias_is_added() -> None:
    assert processed([1, 1, 1, -INF], History(), logit_bias={1: -0.5, 2: -INF, 3: 5}) == [1, 0.5, -INF, -INF]


def test_a_bias_comes_after_the_penalties() -> None:
    assert processed([2], History([0], [0]), repetition_penalty=2, presence_penalty=1, logit_bias={0: 5}) == [5]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1e300},
        {"repetition_penalty": math.ulp(0.0)},
        {"frequency_penalty": 1e300, "presence_penalty": 1e300},
        {"frequency_penalty": -1e300, "presence_penalty": -1e300},
        {"logit_bias": {0: 1e300, 1: -1e300}},
    ],
    ids=str,
)
def test_what_is_beyond_float32_makes_no_logit_that_is_not_finite(params: dict[str, Any]) -> None:
    found = processed([0.0, 3.0, -2.0, -INF], History([0], [1, 1, 3]), **params)
    assert not any(math.isnan(value) or value == INF for value in found) and found[3] == -INF
