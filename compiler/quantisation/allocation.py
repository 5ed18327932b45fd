"""Bits under a budget: for each weight one of its formats, so that all fit and the sum of their costs is least.

The multiple-choice knapsack (Kellerer, Pferschy, Pisinger: Knapsack Problems, chapter 11) by dynamic programming over
the bytes beyond the smallest choice of each. It is exact where these have a common unit that divides the slack into
few steps; else bytes are rounded up to larger units, a Lagrangian relaxation is asked too, what is left over is spent
afterwards, and `bound` says how much better any other allocation could be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dsv3c.compiler.formats.elements import Array

MAX_STEPS = 50_000
_BISECTIONS = 60


class Choice(NamedTuple):
    """One way to store a weight: what it takes and what it costs."""

    nbytes: int
    cost: float


@dataclass(frozen=True)
class Allocation:
    """chosen: for each weight the index of its choice. bound: no allocation within the budget costs less than this."""

    chosen: tuple[int, ...]
    nbytes: int
    cost: float
    bound: float


def allocate(weights: Sequence[Sequence[Choice]], budget: int, max_steps: int = MAX_STEPS) -> Allocation:
    """The cheapest allocation of at most `budget` bytes, which must be enough for the smallest choices."""
    kept = [_undominated(choices) for choices in weights]
    floors = [choices[order[0]].nbytes for choices, order in zip(weights, kept, strict=True)]
    extras = [
        [choices[at].nbytes - floor for at in order]
        for choices, order, floor in zip(weights, kept, floors, strict=True)
    ]
    slack = budget - sum(floors)
    assert slack >= 0, "the budget is less than the least possible"
    unit = math.gcd(*(extra for row in extras for extra in row)) or 1
    exact = slack // unit <= max_steps
    unit = unit if exact else -(-slack // max_steps)
    costs = [[choices[at].cost for at in order] for choices, order in zip(weights, kept, strict=True)]
    steps = [[-(-extra // unit) for extra in row] for row in extras]
    places = _spend(_fewest(steps, costs, slack // unit), extras, costs, slack)
    bound = _cost(costs, places)
    if not exact:
        bound, relaxed = _relaxed(extras, costs, slack)
        places = min(places, _spend(relaxed, extras, costs, slack), key=lambda places: _cost(costs, places))
    chosen = tuple(order[place] for order, place in zip(kept, places, strict=True))
    nbytes = sum(choices[at].nbytes for choices, at in zip(weights, chosen, strict=True))
    cost = _cost(costs, places)
    return Allocation(chosen, nbytes, cost, min(bound, cost))


def _cost(costs: list[list[float]], places: list[int]) -> float:
    return sum(row[place] for row, place in zip(costs, places, strict=True))


def _undominated(choices: Sequence[Choice]) -> list[int]:
    """The choices that are worth their bytes, from the smallest on: each cheaper than all before it."""
    kept: list[int] = []
    for at in sorted(range(len(choices)), key=lambda at: choices[at]):
        if not kept or choices[at].cost < choices[kept[-1]].cost:
            kept.append(at)
    return kept


def _fewest(steps: list[list[int]], costs: list[list[float]], capacity: int) -> list[int]:
    """The place in each row that together take at most `capacity` steps at the least cost."""
    best: Array = np.zeros(capacity + 1)
    taken: list[Array] = []
    for row, prices in zip(steps, costs, strict=True):
        found, place = np.full(capacity + 1, np.inf), np.zeros(capacity + 1, np.int16)
        for at, (step, price) in enumerate(zip(row, prices, strict=True)):
            if step > capacity:
                continue
            reached = best[: capacity + 1 - step] + price
            better = reached < found[step:]
            found[step:][better] = reached[better]
            place[step:][better] = at
        best = found
        taken.append(place)
    places, left = [], capacity
    for row, place in zip(reversed(steps), reversed(taken), strict=True):
        places.append(int(place[left]))
        left -= row[places[-1]]
    return places[::-1]


def _spend(places: list[int], extras: list[list[int]], costs: list[list[float]], slack: int) -> list[int]:
    """Use what rounding up left over: again and again the change that saves most and fits."""
    left = slack - sum(row[place] for row, place in zip(extras, places, strict=True))
    while True:
        changes = (
            (costs[item][at] - costs[item][place], item, at)
            for item, place in enumerate(places)
            for at in range(place + 1, len(extras[item]))
            if extras[item][at] - extras[item][place] <= left
        )
        saved, item, at = min(changes, default=(0.0, 0, 0))
        if saved >= 0:
            return places
        left -= extras[item][at] - extras[item][places[item]]
        places[item] = at


def _relaxed(extras: list[list[int]], costs: list[list[float]], slack: int) -> tuple[float, list[int]]:
    """The largest Lagrangian bound, the least of cost + price * (bytes - slack) over prices of a byte; and the places
    at a price that is just high enough for them to fit."""

    def cheapest(price: float) -> list[int]:
        rows = zip(extras, costs, strict=True)
        return [min(range(len(row)), key=lambda at: cost[at] + price * row[at]) for row, cost in rows]

    def taken(places: list[int]) -> int:
        return sum(row[place] for row, place in zip(extras, places, strict=True))

    low, high = 0.0, 1e-15 + max((cost[0] for cost in costs), default=0.0)  # nothing is worth more than that a byte
    best, fitting = _cost(costs, cheapest(low)), cheapest(high)
    for _ in range(_BISECTIONS):
        price = (low + high) / 2
        places = cheapest(price)
        best = max(best, _cost(costs, places) + price * (taken(places) - slack))
        if taken(places) > slack:
            low = price
        else:
            high, fitting = price, places
    return best, fitting
