"""Sampling in C against runtime/engine/sampling.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsv3c.runtime.engine.history import History
from dsv3c.runtime.engine.params import SamplingParams
from dsv3c.runtime.engine.sampling import Sampler
from tests.targets.cpu.native.binding import Failure, Model
from tests.targets.cpu.native.binding import Sampler as CSampler

VOCAB = 2048
PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 1.0},
    "hot": {"temperature": 3.5},
    "top-k": {"temperature": 0.8, "top_k": 5},
    "top-p": {"temperature": 0.8, "top_p": 0.9},
    "top-k-top-p": {"temperature": 1.3, "top_k": 40, "top_p": 0.7},
    "min-p": {"temperature": 1.0, "min_p": 0.05},
    "all": {"temperature": 0.7, "top_k": 100, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.3},
    "penalty beyond float32": {"temperature": 0.0, "repetition_penalty": 1e300},
    "reward beyond float32": {"temperature": 1.0, "repetition_penalty": 5e-324},
    "one": {"temperature": 1.0, "top_p": 1e-9},
    "typical-p": {"temperature": 1.0, "typical_p": 0.9},
    "typical-p of few": {"temperature": 1.2, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.5},
    "counts": {"temperature": 0.9, "frequency_penalty": 1.5, "presence_penalty": -0.5},
    "n-grams": {"temperature": 0.0, "no_repeat_ngram_size": 2},
    "bans": {"temperature": 0.0, "suppress_tokens": (7, 8), "bad_words_ids": ((9,), (1,), (100, 101), (103, 102, 101))},
    "bias": {"temperature": 1.0, "logit_bias": {5: 7.5, 100: -np.inf, 101: -1e300, 2047: 3.0}},
    "lengths": {"temperature": 0.5, "min_length": 30, "min_new_tokens": 40, "eos_token_id": (1, 100)},
    "both kinds": {"temperature": 1.0, "repetition_penalty": 1.2, "frequency_penalty": 0.3, "no_repeat_ngram_size": 3},
}


def both(model: Model, name: str, seed: int) -> tuple[CSampler, Sampler]:
    params = PARAMS[name]
    ends = frozenset(params.get("eos_token_id", ()))
    return model.sampler(seed=seed, **params), Sampler(SamplingParams(seed=seed, **params), VOCAB, ends)


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32, 2**64 - 1])
def test_the_same_seed_draws_the_same_tokens(model: Model, name: str, seed: int) -> None:
    ours, theirs = both(model, name, seed)
    random, history = np.random.default_rng(3), History([100, 101, 100])
    for _ in range(60):
        logits = (random.standard_normal(VOCAB) * 3).astype(np.float32)
        logits[90:110] += 6  # so that some tokens come again
        expected = theirs.sample(logits, history)
        assert ours.sample(logits, history.tokens, 3) == expected
        history.append(expected)
    ours.free()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    few=st.lists(st.sampled_from([-3.0, 0.0, 1.0, 2.0]), min_size=4, max_size=40),
    name=st.sampled_from(sorted(PARAMS)),
    seed=st.integers(0, 2**64 - 1),
)
def test_ties_are_broken_alike(model: Model, few: list[float], name: str, seed: int) -> None:
    logits = np.full(VOCAB, -200.0, np.float32)
    logits[100 : 100 + len(few)] = few
    ours, theirs = both(model, name, seed)
    assert [ours.sample(logits) for _ in range(4)] == [theirs.sample(logits, History()) for _ in range(4)]
    ours.free()


def test_where_every_token_is_forbidden_there_is_none(model: Model) -> None:
    sampler = model.sampler(no_repeat_ngram_size=1)
    with pytest.raises(Failure, match="NO_TOKEN_ALLOWED: after 2048 tokens every token is forbidden"):
        sampler.sample(np.zeros(VOCAB, np.float32), range(VOCAB))
    sampler.free()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(model: Model, value: float) -> None:
    sampler = model.sampler(temperature=1.0)
    logits = np.zeros(VOCAB, np.float32)
    logits[5] = value
    with pytest.raises(Failure) as failed:
        sampler.sample(logits)
    assert failed.value.status == "NOT_FINITE"
    assert 0 <= sampler.sample(np.zeros(VOCAB, np.float32)) < VOCAB
    sampler.free()


WRONG = {
    "temperature": -1.0,
    "top_k": -1,
    "top_p": 0.0,
    "min_p": 1.5,
    "typical_p": 0.0,
    "repetition_penalty": 0.0,
    "frequency_penalty": np.inf,
    "presence_penalty": np.nan,
    "no_repeat_ngram_size": -1,
    "logit_bias": {3: np.inf},
}


@pytest.mark.parametrize("name", WRONG)
def test_parameters_out_of_range_are_named(model: Model, name: str) -> None:
    with pytest.raises(Failure, match=f"BAD_ARGUMENT: {name} is out of range"):
        model.sampler(**{name: WRONG[name]})
    with pytest.raises(Failure, match="BAD_ARGUMENT"):
        model.sampler(temperature=float("nan"))


@pytest.mark.parametrize(
    "params",
    [{"suppress_tokens": [VOCAB]}, {"eos_token_id": [-1]}, {"bad_words_ids": [[5, VOCAB]]}, {"logit_bias": {VOCAB: 1}}],
    ids=lambda params: next(iter(params)),
)
def test_ids_that_the_model_does_not_have_are_refused(model: Model, params: dict[str, Any]) -> None:
    with pytest.raises(Failure, match=rf"BAD_TOKEN: {next(iter(params))}: token id \S+ is not in 0\.\.2047"):
        model.sampler(**params)


def test_a_word_without_ids_is_refused(model: Model) -> None:
    with pytest.raises(Failure, match="BAD_ARGUMENT: bad_words_ids has a word without ids"):
        model.sampler(bad_words_ids=[[]])


def test_the_defaults_are_those_of_the_checkpoint(model: Model) -> None:
    how = model.c.dsv3c_sampling_defaults(model.handle)
    assert (how.temperature, how.top_p, how.top_k, how.min_p, how.repetition_penalty) == (0.8, 0.95, 0, 0.0, 1.0)
    assert how.eos_token_id.ids[: how.eos_token_id.count] == [1]
    assert model.info.end_tokens[: model.info.end_token_count] == [1]
