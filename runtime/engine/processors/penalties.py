"""Logits that gain or lose by what the text has already, or by wish."""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np

from dsv3c.runtime.engine.history import History
from dsv3c.runtime.engine.processors.filters import Floats, divisor


class Repetition:
    """Each id of prompt and answer once: a positive logit is divided by the penalty, another multiplied (arXiv
    1909.05858)."""

    def __init__(self, penalty: float) -> None:
        self._penalty = divisor(penalty)

    def __call__(self, logits: Floats, history: History) -> None:
        # An id that stands there several times is written as often, from the same logit.
        tokens = history.tokens
        seen = logits[tokens]
        with np.errstate(over="ignore", under="ignore"):
            logits[tokens] = np.where(seen > 0, seen / self._penalty, seen * self._penalty)


class Counts:
    """Each id of the answer loses `frequency` for every time that it stands there, and `presence` once.

    The formula of the OpenAI API reference, "Frequency and presence penalties".
    """

    def __init__(self, frequency: float, presence: float) -> None:
        self._frequency, self._presence = frequency, presence

    def __call__(self, logits: Floats, history: History) -> None:
        ids, counts = np.unique(history.generated, return_counts=True)
        logits[ids] -= np.clip(counts * self._frequency + self._presence, -1e30, 1e30).astype(np.float32)


class Bias:
    """Given ids gain what stands beside them."""

    def __init__(self, biases: Many[tuple[int, float]]) -> None:
        self._ids = np.array([token for token, _ in biases], np.intp)
        # Kept where float32 can add them; -inf is a ban.
        within = (max(min(bias, 1e30), -1e30) if bias > -np.inf else bias for _, bias in biases)
        self._biases = np.array([*within], np.float32)

    def __call__(self, logits: Floats, history: History) -> None:
        logits[self._ids] += self._biases
