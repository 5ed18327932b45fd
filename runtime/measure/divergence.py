"""How two models' predictions differ: numbers of each position, and estimates with standard errors over them.

Positions are taken as independent draws: those of one text are not quite, so true errors are somewhat larger.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.devices.device import Floats
from dsv3c.runtime.engine.session import Ints

Doubles = NDArray[np.float64]
_BLOCK = 1 << 22  # logits that are looked at together: their doubles take 32 MiB


@dataclass(frozen=True)
class Estimate:
    """A mean, or what follows from one, and its standard error."""

    value: float
    error: float

    @staticmethod
    def mean(samples: NDArray[Any]) -> Estimate:
        """Of at least two samples."""
        return Estimate(float(samples.mean()), float(samples.std(ddof=1)) / math.sqrt(samples.size))

    def exp(self) -> Estimate:
        """Its exponential, with the error to first order: exp(x) · error."""
        value = math.exp(self.value) if self.value < 700 else math.inf
        return Estimate(value, value * self.error)


@dataclass(frozen=True)
class Divergence:
    """A model Q against a reference P on the same positions, in nats.

    reference: the perplexity of P. ratio: perplexity of Q over that of P, its error from the paired differences, as is
    that of nll_change. kl: D(P ‖ Q) of the next-token distributions, its mean, and quantiles. top1: how often both
    have the same first choice. logit_error: the largest |logit of Q - logit of P|.
    """

    reference: Estimate
    ratio: Estimate
    nll_change: Estimate
    kl: Estimate
    kl_median: float
    kl_90: float
    kl_99: float
    kl_max: float
    top1: Estimate
    logit_error: float


class Scores:
    """Numbers of each position of a text, filled in as logits come: 8 bytes each for one model, 33 for two."""

    def __init__(self, positions: int, compared: bool) -> None:
        self._done = 0
        others = positions if compared else 0
        self._nll = np.zeros(positions)
        self._reference, self._kl = np.zeros(others), np.zeros(others)
        self._same, self._error = np.zeros(others, np.bool_), np.zeros(others)

    def add(self, targets: Ints, logits: Floats, reference: Floats | None) -> None:
        """The next positions: what followed [n], finite logits [n, V] of the model, and those of the reference."""
        for rows in _blocks(targets.size, logits.shape[1]):
            span = slice(self._done, self._done + rows.stop - rows.start)
            found = log_softmax(logits[rows])
            at = np.arange(found.shape[0]), targets[rows]
            self._nll[span] = -found[at]
            if reference is not None:
                expected = log_softmax(reference[rows])
                self._reference[span] = -expected[at]
                self._kl[span] = kl_divergence(expected, found)
                self._same[span] = logits[rows].argmax(axis=1) == reference[rows].argmax(axis=1)
                self._error[span] = np.abs(logits[rows].astype(np.float64) - reference[rows]).max(axis=1)
            self._done = span.stop

    @property
    def nll(self) -> Estimate:
        """Of the model: mean -log of the probability of what followed."""
        return Estimate.mean(self._nll[: self._done])

    def divergence(self) -> Divergence:
        """From the reference, if one was given."""
        span = slice(0, self._done)
        kl, change = self._kl[span], Estimate.mean(self._nll[span] - self._reference[span])
        median, ninety, most = (float(value) for value in np.quantile(kl, (0.5, 0.9, 0.99)))
        return Divergence(
            reference=Estimate.mean(self._reference[span]).exp(),
            ratio=change.exp(),
            nll_change=change,
            kl=Estimate.mean(kl),
            kl_median=median,
            kl_90=ninety,
            kl_99=most,
            kl_max=float(kl.max()),
            top1=Estimate.mean(self._same[span]),
            logit_error=float(self._error[span].max()),
        )


def log_softmax(logits: Floats) -> Doubles:
    """f64 [n, V] of logits [n, V]."""
    shifted: Doubles = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def kl_divergence(expected: Doubles, found: Doubles) -> Doubles:
    """D(P ‖ Q) [n] of the logarithms of P and Q [n, V]; rounding does not make it negative."""
    divergence: Doubles = (np.exp(expected) * (expected - found)).sum(axis=1)
    return np.maximum(divergence, 0)


def _blocks(rows: int, width: int) -> Iterator[slice]:
    size = max(1, _BLOCK // width)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
