"""Sampling: filters against a plain definition, seeds, and every parameter that makes no sense."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.runtime import errors
from dsv3c.runtime.engine.sampling import Sampler, SamplingParams

LOGITS = np.array([1.0, 4.0, 2.0, 3.0, -np.inf], np.float32)
NAN = float("nan")
INF = float("inf")


def drawn(logits: np.ndarray[Any, Any], count: int = 300, **params: Any) -> list[int]:
    sampler = Sampler(SamplingParams(seed=1, **params), logits.size)
    return [sampler.sample(logits) for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", v) for v in (-0.1, NAN, INF, "1", None, True, 10**400)],
        *[("top_k", v) for v in (-1, 1.5, NAN, "3", True)],
        *[("top_p", v) for v in (0, -1, 1.01, NAN, None)],
        *[("min_p", v) for v in (-0.1, 1.1, NAN)],
        *[("repetition_penalty", v) for v in (0, -1, NAN, INF)],
        *[("max_new_tokens", v) for v in (0, -1, 1.5, NAN, None, "9")],
        *[("seed", v) for v in (-1, 0.5, "x")],
        *[("stop", v) for v in ("", ("a", ""), (1,), 3, {"a"})],
        *[("ignore_eos", v) for v in (1, None)],
    ],
    ids=lambda value: str(value)[:20],
)
def test_parameter_invalid(name: str, value: Any) -> None:
    with pytest.raises(errors.ParameterInvalid, match=name):
        SamplingParams().updated({name: value})


def test_unknown_parameter_lists_the_known() -> None:
    with pytest.raises(errors.UnknownParameter, match=r"'temprature'; known: temperature, top_k"):
        SamplingParams().updated({"temprature": 1})


def test_one_stop_string_stands_for_a_list() -> None:
    assert SamplingParams(stop="end").stop == ("end",)  # type: ignore[arg-type]
    assert SamplingParams(max_new_tokens=10**30).max_new_tokens == 10**30


def test_defaults_of_a_checkpoint() -> None:
    config = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": None, "eos_token_id": 1, "other": []}
    assert SamplingParams.from_generation_config(config) == SamplingParams(temperature=0.8, top_p=0.95)
    assert SamplingParams.from_generation_config({"do_sample": True}).temperature == 1
    assert SamplingParams.from_generation_config({"temperature": 0.8}).temperature == 0
    odd = {"do_sample": True, "temperature": "hot", "top_k": -1, "top_p": 0, "min_p": 7}
    assert SamplingParams.from_generation_config(odd) == SamplingParams(temperature=1.0)


def test_greedy_takes_the_likeliest_and_the_lower_id_of_two() -> None:
    assert set(drawn(LOGITS)) == {1}
    assert set(drawn(np.array([1, 3, 3], np.float32))) == {1}


def test_seed_reproduces() -> None:
    assert drawn(LOGITS, temperature=1) == drawn(LOGITS, temperature=1)
    one, two = (Sampler(SamplingParams(temperature=1, seed=seed), 5) for seed in (1, 2))
    assert [one.sample(LOGITS) for _ in range(30)] != [two.sample(LOGITS) for _ in range(30)]


def test_frequencies_follow_the_probabilities() -> None:
    counts = np.bincount(drawn(LOGITS, 20_000, temperature=1), minlength=5)
    expected = np.exp(LOGITS - 4) / np.exp(LOGITS - 4).sum()
    np.testing.assert_allclose(counts / 20_000, expected, atol=0.015)
    assert counts[4] == 0


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 10**9}, {0, 1, 2, 3}),
        ({"top_p": 0.5}, {1}),
        ({"top_p": 0.7}, {1, 3}),
        ({"top_p": 1e-9}, {1}),
        ({"min_p": 0.2}, {1, 3}),
        ({"min_p": 1.0}, {1}),
        ({"top_k": 3, "top_p": 0.97}, {1, 2, 3}),
        ({"top_k": 1, "top_p": 0.01, "min_p": 0.9}, {1}),
    ],
    ids=str,
)
def test_filters(params: dict[str, Any], allowed: set[int]) -> None:
    assert set(drawn(LOGITS, 2000, temperature=1, **params)) == allowed


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1e6, 1e300])
def test_extreme_temperatures(temperature: float) -> None:
    found = set(drawn(LOGITS, temperature=temperature))
    assert found == ({1} if temperature < 1 else {0, 1, 2, 3})


def test_repetition_penalty() -> None:
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), 5)
    sampler.observe([1, 1, 4])
    assert sampler.sample(LOGITS) == 3
    sampler.observe(np.array([3], np.int32))
    assert sampler.sample(LOGITS) == 1 and LOGITS[1] == 4
    negative = np.array([-1.0, -1.5], np.float32)
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), 2)
    sampler.observe([0])
    assert sampler.sample(negative) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("penalty", "expected"), [(1e300, 2), (math.ulp(0.0), 1)])
def test_a_penalty_beyond_float32_makes_no_logits_that_are_not_finite(penalty: float, expected: int) -> None:
    sampler = Sampler(SamplingParams(repetition_penalty=penalty), 3)
    sampler.observe([0, 1])
    assert sampler.sample(np.array([0.0, 3.0, 2.0], np.float32)) == expected


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_not_finite(value: float, temperature: float) -> None:
    logits = LOGITS.copy()
    logits[2] = value
    with pytest.raises(errors.LogitsNotFinite):
        drawn(logits, 1, temperature=temperature)
    with pytest.raises(errors.LogitsNotFinite):
        drawn(np.full(3, -np.inf, np.float32), 1, temperature=temperature)


@given(st.integers(0, 2**32), st.integers(0, 600), st.floats(0.01, 1), st.floats(0, 1), st.floats(0.05, 20))
@settings(max_examples=100, deadline=None)
def test_candidates_are_those_of_the_definition(seed: int, k: int, p: float, min_p: float, temperature: float) -> None:
    # Rounded so that equal logits occur.
    logits = np.random.default_rng(seed).normal(0, 2, 700).round(1).astype(np.float32)
    sampler = Sampler(SamplingParams(temperature=temperature, top_k=k, top_p=p, min_p=min_p), logits.size)
    ids, _ = sampler._candidates(logits, float(logits.max()))
    found = list(range(logits.size)) if ids is None else ids.tolist()
    assert sorted(found) == sorted(plain_candidates(logits, k, p, min_p, temperature))


def plain_candidates(logits: Any, k: int, p: float, min_p: float, temperature: float) -> list[int]:
    weights = np.exp((logits - logits.max()) / np.float32(temperature)).astype(np.float64)
    order = np.argsort(-weights, kind="stable")[: k or None]
    kept, share = [], 0.0
    for token in order:
        kept.append(int(token))
        share += weights[token]
        if p < 1 and share >= p * weights[order].sum() * (1 - 1e-12):
            break
    return [token for token in kept if weights[token] >= np.float32(min_p)]


@pytest.mark.parametrize("params", [{}, {"top_p": 0.95}, {"top_k": 40, "top_p": 0.9}, {"min_p": 0.05}], ids=str)
def test_a_large_vocabulary_is_fast(params: dict[str, Any]) -> None:
    logits = np.random.default_rng(0).normal(0, 3, 129_280).astype(np.float32)
    sampler = Sampler(SamplingParams(temperature=0.8, seed=0, **params), logits.size)
    best = min(_seconds(lambda: sampler.sample(logits)) for _ in range(5))
    assert best < 0.05


def _seconds(run: Any) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
