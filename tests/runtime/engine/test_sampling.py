"""Sampling: what is drawn and how often, seeds and streams, devices and drafts, logits that cannot be used."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3c.runtime import errors
from dsv3c.runtime.engine.history import History
from dsv3c.runtime.engine.params import SamplingParams
from dsv3c.runtime.engine.sampling import Draw, Sampler

LOGITS = np.array([1.0, 4.0, 2.0, 3.0, -np.inf], np.float32)
NAN = float("nan")
INF = float("inf")


def drawn(logits: np.ndarray[Any, Any], count: int = 300, **params: Any) -> list[int]:
    sampler = Sampler(SamplingParams(seed=1, **params), logits.size)
    return [sampler.sample(logits, History()) for _ in range(count)]


def test_greedy_takes_the_likeliest_and_the_lower_id_of_two() -> None:
    assert set(drawn(LOGITS)) == {1}
    assert set(drawn(np.array([1, 3, 3], np.float32))) == {1}


def test_seed_reproduces() -> None:
    assert drawn(LOGITS, temperature=1) == drawn(LOGITS, temperature=1)
    one, two = (Sampler(SamplingParams(temperature=1, seed=seed), 5) for seed in (1, 2))
    assert [one.sample(LOGITS, History()) for _ in range(30)] != [two.sample(LOGITS, History()) for _ in range(30)]


def test_results_of_one_request_have_streams_of_their_own() -> None:
    def tokens(seed: int, stream: int) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1, seed=seed), 1000, stream=stream)
        return [sampler.sample(np.zeros(1000, np.float32), History()) for _ in range(8)]

    found = {(seed, stream): tokens(seed, stream) for seed in (0, 1) for stream in (0, 1, 2)}
    assert len({tuple(each) for each in found.values()}) == 6
    assert all(tokens(*key) == found[key] for key in found)
    assert found[1, 0][0] == int(np.random.Generator(np.random.PCG64(1)).random() * 1000)


@given(st.lists(st.sampled_from(["sample", "token", "draw", "guess", "scores"]), max_size=12), st.integers(0, 3))
def test_each_token_takes_one_number_whoever_draws_it(calls: list[str], ahead: int) -> None:
    """Of logits that are all alike the token says which number was taken."""
    logits, history = np.zeros(4096, np.float32), History()
    sampler, numbers = Sampler(SamplingParams(temperature=1, seed=5), 4096), np.random.Generator(np.random.PCG64(5))
    expected = [int(numbers.random() * 4096) for _ in range(len(calls) + ahead + 1)]
    for call in calls:
        if call == "sample":
            assert sampler.sample(logits, history) == expected.pop(0)
        elif call == "token":
            sampler.token(expected.pop(0))
        elif call == "draw":
            assert drawn_by_device(sampler.draw(ahead), 4096) == expected[ahead]
        elif call == "guess":
            assert sampler.guess(logits, ahead) == expected[ahead]
        else:
            sampler.scores(logits, history)


def drawn_by_device(draw: Draw | None, size: int) -> int:
    assert draw is not None
    return int(draw.words[4:5].view(np.uint32)[0]) * size >> 32


@pytest.mark.parametrize(
    "params",
    [{"suppress_tokens": [3]}, {"repetition_penalty": 1.1}, {"typical_p": 0.9}, {"logprobs": 0}, {"min_new_tokens": 2}],
    ids=str,
)
def test_a_device_draws_nothing_that_the_host_must_change_or_see(params: dict[str, Any]) -> None:
    ends = frozenset([1])
    assert Sampler(SamplingParams(temperature=1).updated(params), 5, ends).draw() is None
    assert Sampler(SamplingParams().updated(params), 5, ends).draw() is None or "typical_p" in params


def test_scores_are_logits_by_temperature_and_cut() -> None:
    sampler = Sampler(SamplingParams(temperature=0.5, top_k=3, suppress_tokens=(1,)), 5)
    np.testing.assert_array_equal(sampler.scores(LOGITS, History()), [2, -np.inf, 4, 6, -np.inf])
    greedy = Sampler(SamplingParams(top_k=1), 5).scores(LOGITS, History())
    np.testing.assert_array_equal(greedy, LOGITS)
    greedy[0] = 9
    assert LOGITS[0] == 1


@given(st.integers(0, 2**32), st.sampled_from([{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"typical_p": 0.5}]))
def test_what_is_drawn_is_what_the_scores_leave(seed: int, params: dict[str, Any]) -> None:
    logits = np.random.default_rng(seed).normal(0, 2, 50).astype(np.float32)
    sampler = Sampler(SamplingParams(temperature=1.5, seed=seed, repetition_penalty=1.5).updated(params), 50)
    history = History([3, 7])
    left = set(np.flatnonzero(sampler.scores(logits, history) > -np.inf).tolist())
    assert {sampler.sample(logits, history) for _ in range(20)} <= left


def test_a_guess_meets_the_token_where_the_logits_are_the_same() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (4, 100)).astype(np.float32)
    for params in ({"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.0, "typical_p": 0.8}, {}):
        sampler = Sampler(SamplingParams(seed=3, **params), 100)  # type: ignore[arg-type]
        guessed = [sampler.guess(row, ahead) for ahead, row in enumerate(logits)]
        assert [sampler.sample(row, History()) for row in logits] == guessed


def test_processors_of_the_caller_come_last() -> None:
    def only(logits: Any, history: History) -> None:
        logits[:4] = -np.inf

    sampler = Sampler(SamplingParams(logit_bias=((4, 7.0),)), 5, more=[only])
    assert sampler.sample(np.zeros(5, np.float32), History()) == 4 and sampler.draw() is None


def test_all_banned_is_one_error() -> None:
    sampler = Sampler(SamplingParams(suppress_tokens=(0, 1, 2, 3), temperature=1, seed=1), 5)
    with pytest.raises(errors.NoTokenAllowed, match="after 2 tokens"):
        sampler.sample(LOGITS, History([1, 2]))


def test_a_fault_takes_no_number() -> None:
    one, two = (Sampler(SamplingParams(temperature=1, seed=3), 1000) for _ in range(2))
    for call in (lambda: one.sample(np.full(1000, np.nan, np.float32), History()), lambda: one.token(-1)):
        with pytest.raises(errors.LogitsNotFinite):
            call()
    assert one.sample(np.zeros(1000, np.float32), History()) == two.sample(np.zeros(1000, np.float32), History())


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


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_not_finite(value: float, temperature: float) -> None:
    logits = LOGITS.copy()
    logits[2] = value
    with pytest.raises(errors.LogitsNotFinite):
        drawn(logits, 1, temperature=temperature)
    with pytest.raises(errors.LogitsNotFinite):
        drawn(np.full(3, -np.inf, np.float32), 1, temperature=temperature)


@pytest.mark.parametrize("params", [{}, {"top_p": 0.95}, {"top_k": 40, "top_p": 0.9}, {"min_p": 0.05}], ids=str)
def test_a_large_vocabulary_is_fast(params: dict[str, Any]) -> None:
    logits = np.random.default_rng(0).normal(0, 3, 129_280).astype(np.float32)
    sampler = Sampler(SamplingParams(temperature=0.8, seed=0, **params), logits.size)
    best = min(_seconds(lambda: sampler.sample(logits, History())) for _ in range(5))
    assert best < 0.05


def _seconds(run: Any) -> float:
    begin = time.thread_time()
    run()
    return time.thread_time() - begin
