"""One text whose drafts are verified: drawn tokens have the model's distribution, whoever drafts and however badly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from dsv3c.runtime.engine.cache import PagePool, Sequence
from dsv3c.runtime.engine.generation import Task
from dsv3c.runtime.engine.history import History
from dsv3c.runtime.engine.lanes import Lane
from dsv3c.runtime.engine.params import SamplingParams
from dsv3c.runtime.engine.sampling import Sampler
from dsv3c.runtime.engine.strategies.single import Single

V = 12
Floats = NDArray[np.float32]
Guess = Callable[[Sampler], list[int]]  # two drafts for a text


def logits(seed: int) -> Floats:
    return np.random.default_rng(seed).normal(0, 1.5, V).astype(np.float32)


FIRST = logits(1)
SECOND = [logits(10 + token) for token in range(V)]
DRAFT_FIRST = FIRST + np.random.default_rng(2).normal(0, 0.7, V).astype(np.float32)
PROMPT = np.array([3, 1, 4], np.int32)


def no_drafts(sampler: Sampler) -> list[int]:
    return []


def same_drafts(sampler: Sampler) -> list[int]:
    """As n-gram lookup: they know nothing of the numbers."""
    return [int(FIRST.argmax()), 5]


def drafts_of_a_model(sampler: Sampler) -> list[int]:
    """As a draft model and the layer for multi-token prediction: drawn from other logits with the same numbers."""
    first = sampler.guess(DRAFT_FIRST, 0)
    return [first, sampler.guess(SECOND[first] * np.float32(0.5), 1)]


def worst_drafts(sampler: Sampler) -> list[int]:
    return [int(FIRST.argmin()), int(FIRST.argmin())]


def two_tokens(task: Task, sampler: Sampler, guess: Guess) -> tuple[int, int]:
    """The first two tokens, by steps as the scheduler makes them."""
    pool = PagePool(4, 4)
    single = Single(task, Lane(Sequence(pool, 4), History(PROMPT)))
    single.sampler = sampler
    lane, tokens = single.lane, list[int]()
    while single.reason is None:
        drafts = guess(sampler)[: single.left - 1] if not tokens else []
        lane.drafts = np.array(drafts, np.int32)
        length = lane.size + len(drafts)
        lane.sequence.reserve(length)
        lane.sequence.length = length
        said = [*tokens, *drafts]
        places = range(len(tokens), len(said) + 1)
        events = single.advance([np.stack([SECOND[said[place - 1]] if place else FIRST for place in places])])
        tokens += [event.token_id for event in events if event.token_id is not None]
        if single.reason is None:
            assert lane.sequence.length == lane.size - 1  # the last token is pending, nothing of a wrong draft is left
    first, second = tokens
    return first, second


def draw(guess: Guess, count: int, seed: int = 0, **how: float) -> Counter[tuple[int, int]]:
    params = SamplingParams(seed=seed, max_new_tokens=2, **how)  # type: ignore[arg-type]
    task, sampler = Task(PROMPT, params, frozenset(), V, 64, None), Sampler(params, V)
    return Counter(two_tokens(task, sampler, guess) for _ in range(count))


def exact(**how: float) -> dict[tuple[int, int], float]:
    """Probabilities of the first two tokens."""

    def of(row: Floats) -> NDArray[np.float64]:
        sampler = Sampler(SamplingParams(**how), V)  # type: ignore[arg-type]
        scores = sampler.scores(row, History(PROMPT)).astype(np.float64)
        weights = np.exp(scores - scores.max())
        shares: NDArray[np.float64] = weights / weights.sum()
        return shares

    first = of(FIRST)
    return {(a, b): first[a] * second for a in range(V) for b, second in enumerate(of(SECOND[a])) if first[a] * second}


def chi_square(found: Counter[tuple[int, int]], expected: dict[tuple[int, int], float]) -> tuple[float, int]:
    """The statistic and its degrees of freedom; outcomes that are rare are taken together."""
    total = sum(found.values())
    common = [key for key, share in expected.items() if share * total >= 5]
    rest = sum(share for key, share in expected.items() if key not in common)
    rows = [(found[key], expected[key] * total) for key in common]
    rows += [(sum(count for key, count in found.items() if key not in common), rest * total)] if rest else []
    return sum((seen - wanted) ** 2 / wanted for seen, wanted in rows), len(rows) - 1


def quantile_999(freedom: int) -> float:
    """Of chi-square, by Wilson and Hilferty (1931)."""
    return freedom * (1 - 2 / (9 * freedom) + 3.0902 * (2 / (9 * freedom)) ** 0.5) ** 3


@pytest.mark.parametrize("draws", [2_000, pytest.param(20_000, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("how", [{"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize("guess", [no_drafts, same_drafts, drafts_of_a_model, worst_drafts])
def test_two_tokens_have_the_exact_distribution(guess: Guess, how: dict[str, float], draws: int) -> None:
    expected = exact(**how)
    assert sum(expected.values()) == pytest.approx(1)
    found = draw(guess, draws, **how)
    assert set(found) <= set(expected)
    statistic, freedom = chi_square(found, expected)
    print(f"chi-square {statistic:.1f} of {freedom} degrees of freedom, 99.9 % lie below {quantile_999(freedom):.1f}")
    assert freedom > 20
    assert statistic < quantile_999(freedom)


def test_the_statistic_tells_a_distribution_that_is_slightly_off() -> None:
    statistic, freedom = chi_square(draw(no_drafts, 6_000, temperature=1.0), exact(temperature=1.15))
    assert statistic > quantile_999(freedom)


def test_the_same_seed_gives_the_same_text_with_any_drafts() -> None:
    for seed in range(100):
        found = [draw(guess, 1, seed, temperature=1.2) for guess in (no_drafts, same_drafts, drafts_of_a_model)]
        assert found[0] == found[1] == found[2]
