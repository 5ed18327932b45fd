"""Figures of predictions against plain formulas, and their standard errors against a bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from dsv3c.runtime.measure import divergence
from dsv3c.runtime.measure.divergence import Estimate, Scores

Array = NDArray[np.float32]
ROWS, VOCAB = 700, 23


@pytest.fixture
def logits() -> tuple[Array, Array, NDArray[np.int32]]:
    """Of a model [n, V] and of a reference it is close to, and what followed, drawn from the reference."""
    rng = np.random.default_rng(3)
    reference = rng.normal(0, 2, (ROWS, VOCAB)).astype(np.float32)
    model = (reference + rng.normal(0, 0.3, reference.shape)).astype(np.float32)
    targets = np.array([rng.choice(VOCAB, p=row) for row in softmax(reference)], np.int32)
    return model, reference, targets


def softmax(logits: Array) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def scores(model: Array, reference: Array | None, targets: NDArray[np.int32], step: int = 64) -> Scores:
    found = Scores(targets.size, reference is not None)
    for start in range(0, targets.size, step):
        span = slice(start, start + step)
        found.add(targets[span], model[span], None if reference is None else reference[span])
    return found


def bootstrap(statistic: Callable[[NDArray[np.int64]], float], samples: int = 1500) -> float:
    """The standard deviation of a statistic over resampled positions."""
    rng = np.random.default_rng(5)
    return float(np.std([statistic(rng.integers(0, ROWS, ROWS)) for _ in range(samples)], ddof=1))


def test_figures_are_those_of_the_formulas(logits: tuple[Array, Array, NDArray[np.int32]]) -> None:
    model, reference, targets = logits
    found = scores(model, reference, targets)
    q, p, at = softmax(model), softmax(reference), np.arange(ROWS)
    kl = (p * np.log(p / q)).sum(axis=1)
    divergence = found.divergence()
    assert found.nll.value == pytest.approx(-np.log(q[at, targets]).mean())
    assert divergence.reference.value == pytest.approx(math.exp(-np.log(p[at, targets]).mean()))
    assert divergence.ratio.value == pytest.approx(found.nll.exp().value / divergence.reference.value)
    assert divergence.nll_change.value == pytest.approx(math.log(divergence.ratio.value))
    assert divergence.kl.value == pytest.approx(kl.mean())
    quantiles = (divergence.kl_median, divergence.kl_90, divergence.kl_99, divergence.kl_max)
    assert quantiles == pytest.approx(tuple(np.quantile(kl, (0.5, 0.9, 0.99, 1))))
    assert divergence.top1.value == np.mean(q.argmax(1) == p.argmax(1))
    assert divergence.logit_error == np.abs(model.astype(np.float64) - reference).max()


def test_a_model_against_itself_does_not_differ(logits: tuple[Array, Array, NDArray[np.int32]]) -> None:
    model, _, targets = logits
    found = scores(model, model.copy(), targets).divergence()
    assert (found.kl, found.kl_max, found.top1) == (Estimate(0, 0), 0, Estimate(1, 0))
    assert (found.ratio, found.logit_error) == (Estimate(1, 0), 0)


def test_logits_that_are_all_shifted_predict_the_same(logits: tuple[Array, Array, NDArray[np.int32]]) -> None:
    model, _, targets = logits
    found = scores(model + np.float32(8), model, targets).divergence()
    assert found.kl.value == pytest.approx(0, abs=1e-10)
    assert (found.top1.value, found.logit_error) == (1, pytest.approx(8, abs=1e-5))


def test_kl_of_two_known_distributions() -> None:
    """A fair coin, and one that falls to one side three times of four."""
    p, q = np.log(np.full((4, 2), 0.5)), np.log(np.tile([0.75, 0.25], (4, 1)))
    found = scores(q.astype(np.float32), p.astype(np.float32), np.zeros(4, np.int32)).divergence()
    assert found.kl.value == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25), rel=1e-6)


def test_logits_of_any_size_have_a_softmax() -> None:
    extreme = np.array([[3e38, -3e38, 0], [-3e38, -3e38, -3e38]], np.float32)
    found = divergence.log_softmax(extreme)
    assert found[0, 0] == 0 and found[1] == pytest.approx(np.full(3, -math.log(3)))


def test_standard_errors_are_those_of_a_bootstrap(logits: tuple[Array, Array, NDArray[np.int32]]) -> None:
    model, reference, targets = logits
    found = scores(model, reference, targets)
    q, p, at = softmax(model), softmax(reference), np.arange(ROWS)
    ours, theirs = -np.log(q[at, targets]), -np.log(p[at, targets])
    kl, same = (p * np.log(p / q)).sum(axis=1), q.argmax(1) == p.argmax(1)
    divergence = found.divergence()
    pairs = [
        (found.nll, lambda rows: ours[rows].mean()),
        (found.nll.exp(), lambda rows: math.exp(ours[rows].mean())),
        (divergence.ratio, lambda rows: math.exp((ours - theirs)[rows].mean())),
        (divergence.kl, lambda rows: kl[rows].mean()),
        (divergence.top1, lambda rows: same[rows].mean()),
    ]
    for estimate, statistic in pairs:
        assert estimate.error == pytest.approx(bootstrap(statistic), rel=0.08)


def test_the_ratio_is_surer_than_either_perplexity(logits: tuple[Array, Array, NDArray[np.int32]]) -> None:
    """Both models find the same tokens hard: paired, that does not count."""
    found = scores(*logits)
    assert found.divergence().ratio.error < found.nll.error / 3


def test_blocks_and_steps_do_not_matter(
    logits: tuple[Array, Array, NDArray[np.int32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scores(*logits, step=ROWS).divergence()
    monkeypatch.setattr(divergence, "_BLOCK", 5 * VOCAB)
    assert scores(*logits, step=17).divergence() == whole


def test_a_perplexity_beyond_floats_is_infinite() -> None:
    assert Estimate(1e5, 1).exp() == Estimate(math.inf, math.inf)
