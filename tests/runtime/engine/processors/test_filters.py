"""Temperature and filters: the ids that are left are those of a plain definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.runtime.engine.params import SamplingParams
from dsv3c.runtime.engine.processors.filters import candidates

# As near to 1 as float64's rounding, the sum of the shares decides and not the definition.
SHARES = st.floats(0.01, 1 - 1e-6) | st.just(1.0)


@given(st.integers(0, 2**32), st.integers(0, 600), SHARES, st.floats(0, 1), st.floats(0.05, 20))
@settings(max_examples=100)
def test_candidates_are_those_of_the_definition(seed: int, k: int, p: float, min_p: float, temperature: float) -> None:
    # Rounded so that equal logits occur.
    logits = np.random.default_rng(seed).normal(0, 2, 700).round(1).astype(np.float32)
    params = SamplingParams(temperature=temperature, top_k=k, top_p=p, min_p=min_p)
    ids, _ = candidates(logits, float(logits.max()), params)
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


@given(st.integers(0, 2**32), st.sampled_from([0, 5, 200]), st.floats(0.01, 0.99), st.floats(0.2, 5))
@settings(max_examples=100)
def test_typical_ids_are_those_of_the_definition(seed: int, k: int, mass: float, temperature: float) -> None:
    logits = np.random.default_rng(seed).normal(0, 2, 700).astype(np.float32)
    logits[::7] = -np.inf
    params = SamplingParams(temperature=temperature, top_k=k, typical_p=mass)
    ids, weights = candidates(logits, float(logits.max()), params)
    assert ids is not None and ids.size == weights.size
    assert sorted(ids.tolist()) == plain_typical(logits, k, mass, temperature)


def plain_typical(logits: Any, k: int, mass: float, temperature: float) -> list[int]:
    shares = np.exp((logits - logits.max()).astype(np.float64) / np.float32(temperature))
    if k:
        shares[np.argsort(-shares, kind="stable")[k:]] = 0
    shares /= shares.sum()
    left = np.flatnonzero(shares)
    surprise = -np.log(shares[left])
    order = left[np.argsort(np.abs(surprise - (shares[left] * surprise).sum()), kind="stable")]
    kept, share = [], 0.0
    for token in order:
        kept.append(int(token))
        share += shares[token]
        if share >= mass:
            break
    return sorted(kept)


@pytest.mark.parametrize("mass", [1e-6, 0.5, 0.999999])
def test_among_equals_all_are_typical(mass: float) -> None:
    ids, _ = candidates(np.zeros(9, np.float32), 0.0, SamplingParams(temperature=1, typical_p=mass))
    assert ids is not None and ids.tolist() == list(range(9))
