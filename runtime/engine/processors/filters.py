"""Temperature, and the ids that are left to draw from: top-k, top-p, min-p and typical-p, in this order.

Each filter sees the shares that the ones before it left. No large vocabulary is sorted: only ids that can be left are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.engine.params import SamplingParams

Floats = NDArray[np.float32]
Ids = NDArray[np.intp]

# Ids whose weight reaches the first of these limits that takes in enough of them are sorted. The best id weighs 1, the
# last limit takes in all.
_LIMITS = (1e-2, 1e-4, 1e-6, 0.0)
# The same for distances in nats from what is typical.
_DISTANCES = (0.5, 2.0, 8.0, np.inf)


def candidates(logits: Floats, best: float, params: SamplingParams) -> tuple[Ids | None, Floats]:
    """Ids (None: all, in order) with their unnormalised probabilities, after the filters; the best weighs 1.

    best: the largest logit, which is finite. Ids come likeliest first after top-k or top-p, in their order otherwise.
    """
    with np.errstate(over="ignore", under="ignore"):
        scaled = (logits - np.float32(best)) / divisor(params.temperature)
        weights = np.exp(scaled)
    ids = None
    if 0 < params.top_k < logits.size:
        ids = _largest(weights, params.top_k)
    if params.top_p < 1:
        ids = _nucleus(weights, ids, params.top_p)
    if params.min_p > 0:
        # The share of the likeliest is the weight itself.
        ids = np.flatnonzero(weights >= params.min_p) if ids is None else ids[weights[ids] >= params.min_p]
    if params.typical_p < 1:
        ids = np.flatnonzero(weights) if ids is None else ids
        ids = ids[_typical(scaled[ids], weights[ids], params.typical_p)]
    return ids, weights if ids is None else weights[ids]


def divisor(value: float) -> np.float32:
    """A temperature or a penalty, kept where float32 can divide by it; what overflows is -inf, as it should be."""
    return np.float32(min(max(value, 1e-30), 1e30))


def _largest(weights: Floats, count: int) -> Ids:
    """Ids of the `count` largest weights, largest first; equal ones in the order of their ids."""
    for limit in _LIMITS:
        ids = np.flatnonzero(weights >= limit)
        if ids.size >= count:
            break
    return _sorted(weights, ids)[:count]


def _nucleus(weights: Floats, ids: Ids | None, top_p: float) -> Ids:
    """The fewest of the likeliest ids that reach the share `top_p` of all, or of `ids` (largest first)."""
    if ids is not None:
        return _reaching(weights, ids, top_p * _sum(weights[ids]))
    goal = top_p * _sum(weights)
    for limit in _LIMITS:
        ids = np.flatnonzero(weights >= limit)
        if _sum(weights[ids]) >= goal:
            break
    assert ids is not None
    return _reaching(weights, _sorted(weights, ids), goal)


def _typical(scaled: Floats, weights: Floats, mass: float) -> NDArray[np.bool_]:
    """Which of the given ids are the fewest that reach the share `mass`, the one nearest to the entropy first (arXiv
    2202.00666). Those as near as the last one are left too."""
    shares = weights.astype(np.float64) / _sum(weights)
    surprise = np.log(_sum(weights)) - scaled.astype(np.float64)
    held = shares > 0  # the others are infinitely surprising
    entropy = float((shares[held] * surprise[held]).sum())
    distance = np.abs(surprise - entropy)
    for limit in _DISTANCES:
        near = np.flatnonzero(distance <= limit)
        if shares[near].sum() >= mass:
            break
    order = near[np.argsort(distance[near], kind="stable")]
    last = min(int(np.searchsorted(np.cumsum(shares[order]), mass, side="left")), order.size - 1)
    kept: NDArray[np.bool_] = distance <= distance[order[last]]
    return kept


def _reaching(weights: Floats, ids: Ids, goal: float) -> Ids:
    count = int(np.searchsorted(np.cumsum(weights[ids], dtype=np.float64), goal, side="left")) + 1
    return ids[:count]


def _sorted(weights: Floats, ids: Ids) -> Ids:
    return ids[np.argsort(-weights[ids], kind="stable")]


def _sum(weights: Floats) -> float:
    return float(weights.sum(dtype=np.float64))
