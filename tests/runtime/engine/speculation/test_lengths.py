"""How many drafts are tried, on devices that exist as a formula: seconds of a step by its rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from dsv3c.runtime.engine.speculation.lengths import FORESIGHT, SHARE, Acceptance, Lengths

Cost = Callable[[int], float]


def bound_by_memory(rows: int) -> float:
    return 1.0 + 0.02 * rows


def mixture(rows: int) -> float:
    """DeepSeek-V3's shape: 8 of 256 experts a token are most of what is read."""
    return 0.2 + 0.8 * 256 * (1 - (1 - 8 / 256) ** rows) / 8


def bound_by_arithmetic(rows: int) -> float:
    return float(rows)


class Decoding:
    """Decodes with one lane; a draft is right with probability `right`, and costs `draft` seconds."""

    def __init__(self, cost: Cost, right: float, draft: float = 0.0, noise: float = 0.0, most: int = 4) -> None:
        self.lengths, self.acceptance = Lengths(most, lambda rows: cost(rows) / cost(1)), Acceptance()
        self.seconds = self.tokens = 0.0
        self.counts: list[int] = []
        self._cost, self._right, self._draft, self._noise = cost, right, draft, noise
        self._random = random.Random(7)

    def run(self, steps: int, asked: int | None = None) -> Decoding:
        """asked: tokens that are wanted at first; as many as steps where that is not told."""
        for step in range(steps):
            resting, to_come = self.lengths.resting > 0, (steps if asked is None else asked) - step
            count = 0 if resting else self.lengths.choose(1, [self.acceptance.rate], room=63, to_come=to_come)
            right = 0
            while right < count and self._random.random() < self._right:
                right += 1
            drafting = self._draft * count
            seconds = self._cost(1 + count) * (1 + self._noise * self._random.random())
            if resting:
                self.lengths.rested(seconds)
            else:
                self.lengths.measured(1, 1 + count, 1 + right, drafting, seconds)
            if count:
                self.acceptance.add(count, right)
            self.counts.append(count)
            self.seconds += drafting + seconds
            self.tokens += 1 + right
        return self

    @property
    def gain(self) -> float:
        """Against plain decoding of as many tokens."""
        return self.tokens * self._cost(1) * (1 + self._noise / 2) / self.seconds


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("right", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("cost", [bound_by_memory, mixture, bound_by_arithmetic])
def test_speculation_is_never_slower(cost: Cost, right: float, noise: float) -> None:
    for steps in (30, 100, 400, 3000):
        assert Decoding(cost, right, draft=0.1, noise=noise).run(steps).gain >= 0.98


def test_what_is_to_come_is_spent_of_before() -> None:
    """A first draft costs more than a hundredth of what was decoded by then."""
    of_many, of_few = (Decoding(bound_by_arithmetic, right=0.9) for _ in range(2))
    assert any(of_many.run(200).counts[:10])
    assert not any(of_few.run(10).counts)


def test_texts_that_end_early_cost_no_more_than_what_was_to_come_once() -> None:
    decoding = Decoding(bound_by_arithmetic, right=0.0)
    for _ in range(40):
        decoding.run(10, asked=128)
    lengths, plain = decoding.lengths, bound_by_arithmetic(1)
    assert 0 < lengths.lost <= SHARE * (lengths.total + FORESIGHT * plain)


def test_drafts_that_are_right_on_a_device_bound_by_memory_are_as_many_as_may_be() -> None:
    decoding = Decoding(bound_by_memory, right=0.95).run(400)
    assert decoding.gain > 3
    assert sum(count == 4 for count in decoding.counts[-200:]) > 150


def test_a_mixture_takes_none_where_a_dense_model_takes_some() -> None:
    mixed, dense = (Decoding(cost, right=0.6, draft=0.05).run(600) for cost in (mixture, bound_by_memory))
    assert sum(mixed.counts[100:]) < 0.05 * 500
    assert sum(dense.counts[100:]) > 500


def test_what_did_not_pay_is_tried_again_less_and_less_often() -> None:
    counts = Decoding(bound_by_arithmetic, right=0.2).run(3000).counts
    tried = [step for step, count in enumerate(counts) if count]
    assert len(tried) > 2
    pauses = [second - first for first, second in pairwise(tried)]
    assert pauses[-1] > 4 * pauses[0]


def test_a_text_that_becomes_predictable_is_drafted_for_again() -> None:
    decoding = Decoding(bound_by_memory, right=0.0, draft=0.05).run(300)
    decoding._right = 1.0
    before = decoding.tokens / decoding.seconds
    decoding.seconds = decoding.tokens = 0.0
    decoding.run(600)
    assert decoding.tokens / decoding.seconds > 2 * before


def test_a_plain_step_is_measured_again_while_drafts_pay() -> None:
    counts = Decoding(bound_by_memory, right=0.9).run(400).counts
    assert 3 <= counts[10:].count(0) <= 12


def test_no_room_no_drafts() -> None:
    lengths = Lengths(4, lambda rows: 1 + rows / 100)
    for _ in range(20):
        lengths.measured(8, 8, 8, 0.0, 1.0)
    assert lengths.choose(8, [0.99] * 8, room=7) == 0
    assert lengths.choose(8, [0.99] * 8, room=17) in (1, 2)
    assert lengths.choose(8, [], room=17) == 0


def test_acceptance_counts_what_is_known() -> None:
    acceptance = Acceptance()
    before = acceptance.rate
    acceptance.add(3, 0)  # of the second and third nothing is known
    after_one = acceptance.rate
    assert after_one < before
    for _ in range(100):
        acceptance.add(2, 2)
    assert acceptance.rate > 0.97
    copied = acceptance.copy()
    copied.add(1, 0)
    assert copied.rate < acceptance.rate


class Reading:
    """Decodes texts of `prompt` tokens. The drafter takes 0.2 seconds a draft, and `token` seconds for each token it
    reads before; a step that it hears takes `heard` seconds more."""

    def __init__(self, right: float, prompt: int, token: float = 0.0, heard: float = 0.0) -> None:
        self.lengths = Lengths(4, bound_by_memory_growth, lambda rows: 0.1 + token * rows / 2, 4 if heard else 0)
        self.acceptance = Acceptance()
        self.seconds = self.tokens = self.reading = 0.0
        self.first_draft = 0  # tokens before it
        self._right, self._prompt, self._token, self._heard = right, prompt, token, heard
        self._behind = prompt
        self._random = random.Random(5)

    def answer(self, tokens: int) -> Reading:
        self._behind = self._prompt if self._token else 0
        end = self.tokens + tokens
        while self.tokens < end:
            self._step()
        return self

    @property
    def gain(self) -> float:
        return self.tokens * bound_by_memory(1) / self.seconds

    def _step(self) -> None:
        lengths, resting = self.lengths, self.lengths.resting > 0
        count = 0 if resting else lengths.choose(1, [self.acceptance.rate], 63, int(self._behind > 5))
        if count and self._behind > 5:
            most = lengths.readable(1, 1, count, 1)
            assert most
            read = min(most, self._behind)
            lengths.read(read, 1, read * self._token)
            self.seconds += read * self._token
            self.reading += read * self._token
            self._behind = 0
        right = 0
        while right < count and self._random.random() < self._right:
            right += 1
        drafting, step = 0.2 * count, bound_by_memory(1 + count) + (self._heard if lengths.hearing else 0.0)
        if resting:
            lengths.rested(step)
        else:
            lengths.measured(1, 1 + count, 1 + right, drafting, step)
        if count:
            self.acceptance.add(count, right)
            self.first_draft = self.first_draft or int(self.tokens)
        self.seconds += drafting + step
        self.tokens += 1 + right
        self._behind = 0 if count else self._behind + 1 if self._token else 0


def bound_by_memory_growth(rows: int) -> float:
    return bound_by_memory(rows) / bound_by_memory(1)


@pytest.mark.parametrize("right", [0.0, 0.3])
@pytest.mark.parametrize(("prompt", "token"), [(16, 0.05), (1000, 0.05), (1000, 0.002), (1000, 1.0)])
def test_a_drafter_that_must_read_the_text_never_makes_it_slower(right: float, prompt: int, token: float) -> None:
    for answers in (1, 2, 20):
        decoding = Reading(right, prompt, token)
        for _ in range(answers):
            decoding.answer(96)
        assert decoding.gain >= 0.98


@pytest.mark.parametrize("heard", [0.05, 0.3])
@pytest.mark.parametrize("right", [0.0, 0.3])
def test_what_hearing_steps_takes_is_kept_count_of(right: float, heard: float) -> None:
    for tokens in (30, 96, 400, 3000):
        assert Reading(right, 16, heard=heard).answer(tokens).gain >= 0.98


def test_the_first_draft_of_a_long_prompt_is_cheap_and_comes_soon() -> None:
    decoding = Reading(0.0, prompt=1000, token=0.01).answer(300)
    assert 0 < decoding.first_draft < 150
    assert decoding.reading < 0.01 * decoding.seconds


def test_what_drafts_won_lets_the_next_texts_be_read_whole() -> None:
    decoding = Reading(0.9, prompt=200, token=0.01).answer(1500)
    assert decoding.gain > 1.5
    for _ in range(3):  # each at most four times what was read before
        reading = decoding.reading
        decoding.answer(50)
    assert decoding.reading - reading >= 200 * 0.01


def test_hearing_goes_before_drafts_and_ends_with_them() -> None:
    lengths = Lengths(2, bound_by_memory_growth, lambda rows: 0.0, hears=3)
    for _ in range(300):
        lengths.measured(1, 1, 1, 0.0, 1.0)
    assert not lengths.hearing
    assert lengths.choose(1, [0.9], room=8) == 0 and (lengths.hearing, lengths.resting) == (True, 3)
    for _ in range(3):
        assert lengths.hearing
        lengths.rested(1.0)
    assert lengths.choose(1, [0.9], room=8) == 1 and lengths.hearing
    lengths.measured(1, 2, 1, 0.1, 9.0)
    assert lengths.choose(1, [0.1], room=8) == 0 and lengths.resting and not lengths.hearing
