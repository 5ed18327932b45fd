"""Allocation under a budget, against every allocation there is."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.compiler.quantisation.allocation import Choice, allocate

CHOICES = st.builds(Choice, st.integers(1, 60), st.integers(0, 50).map(float))
WEIGHTS = st.lists(st.lists(CHOICES, min_size=1, max_size=4), min_size=1, max_size=5)


def least(weights: list[list[Choice]]) -> int:
    return sum(min(choice.nbytes for choice in choices) for choices in weights)


def cheapest(weights: list[list[Choice]], budget: int) -> float:
    """By trying all."""
    fitting = (all_of for all_of in itertools.product(*weights) if sum(choice.nbytes for choice in all_of) <= budget)
    return min(sum(choice.cost for choice in all_of) for all_of in fitting)


def summed(weights: list[list[Choice]], chosen: tuple[int, ...]) -> tuple[int, float]:
    picked = [choices[at] for choices, at in zip(weights, chosen, strict=True)]
    return sum(choice.nbytes for choice in picked), sum(choice.cost for choice in picked)


@settings(max_examples=100)
@given(WEIGHTS, st.integers(0, 250))
def test_with_small_sizes_the_allocation_is_the_best_there_is(weights: list[list[Choice]], more: int) -> None:
    budget = least(weights) + more
    found = allocate(weights, budget)
    assert (found.nbytes, found.cost) == summed(weights, found.chosen)
    assert found.nbytes <= budget
    assert found.cost == found.bound == cheapest(weights, budget)


@settings(max_examples=100)
@given(WEIGHTS, st.integers(0, 250), st.integers(1, 12))
def test_with_coarse_steps_it_fits_and_the_bound_holds(weights: list[list[Choice]], more: int, steps: int) -> None:
    budget = least(weights) + more
    found = allocate(weights, budget, steps)
    assert (found.nbytes, found.cost) == summed(weights, found.chosen)
    assert found.nbytes <= budget
    assert found.bound - 1e-6 <= cheapest(weights, budget) <= found.cost


def test_the_bound_is_tight_with_many_weights() -> None:
    weights = [[Choice(64 * (3 + at), 2.0**-at * (1 + item % 7)) for at in range(6)] for item in range(300)]
    budget = 64 * 5 * 300 + 12_345
    exact, coarse = allocate(weights, budget), allocate(weights, budget, 700)
    assert exact.bound == exact.cost <= coarse.cost < 1.02 * exact.cost
    assert 0.98 * exact.cost < coarse.bound <= exact.cost


def test_at_the_least_all_take_their_smallest() -> None:
    weights = [[Choice(5, 1.0), Choice(3, 2.0)], [Choice(7, 0.0)]]
    assert allocate(weights, least(weights)).chosen == (1, 0)
    with pytest.raises(AssertionError, match="less than the least"):
        allocate(weights, least(weights) - 1)
