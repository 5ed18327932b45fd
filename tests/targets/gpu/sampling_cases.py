"""Sampling on a device: rows of logits with parameters, and the tokens that dsv3c.runtime.engine.sampling takes."""

from __future__ import annotations

import numpy as np

from dsv3c.runtime.engine.history import History
from dsv3c.runtime.engine.params import SamplingParams
from dsv3c.runtime.engine.sampling import Sampler
from dsv3c.runtime.errors import LogitsNotFinite
from dsv3c.targets.gpu.kernels.frame import Rows
from dsv3c.targets.gpu.kernels.sampling.steps import Greedy, Sample

ROWS = Rows(8, index=1)


class Fixed:
    """A generator whose next number is known."""

    def __init__(self, uniform):
        self._uniform = uniform

    def random(self):
        return self._uniform


def token_of(logits, params, uniform):
    """What the sampler of the runtime takes; -1, -2, -3 where it raises for NaN, infinity, -infinity."""
    sampler = Sampler(params, logits.size)
    sampler._random = Fixed(uniform)
    try:
        return sampler.sample(logits, History())
    except LogitsNotFinite:
        best = logits[logits.argmax()]
        return -1 if np.isnan(best) else -2 if best > 0 else -3


def words(params, uniform):
    """A row of the operand `sampling`."""
    sampler = Sampler(params, 1)
    sampler._random = Fixed(uniform)
    return sampler.draw().words


def case(vocab, rows, greedy=False, filtered=True):
    """rows: (logits [V], parameters, uniform number) each."""
    spec = Greedy(ROWS, vocab) if greedy else Sample(ROWS, vocab, filtered)
    control = np.array([99, len(rows), *[0] * 14], np.int32)
    logits = np.stack([row[0] for row in rows]).astype(np.float32)
    expected = np.array([token_of(*row) for row in rows], np.int32)
    inputs = {"control": control, "logits": logits}
    if not greedy:
        inputs["sampling"] = np.stack([words(*row[1:]) for row in rows])
    return spec, inputs, {"token": expected}, 0


def drawn_logits(seed, vocab, spread=3.0):
    """Multiples of 1/8: equal ones occur, nearly equal ones do not."""
    return (np.random.default_rng(seed).normal(0, spread, vocab) * 8).round() / 8


def greedy_rows(vocab):
    plain, one = drawn_logits(1, vocab), np.zeros(vocab)
    rows = [
        plain,
        one,
        -plain,
        np.full(vocab, -np.inf),
        np.full(vocab, -np.inf),
        plain.copy(),
        plain.copy(),
        one.copy(),
    ]
    rows[4][vocab // 2] = -7  # one number among -inf
    rows[5][vocab - 1] = np.nan
    rows[6][vocab // 3] = np.inf
    rows[7] = np.where(np.arange(vocab) < vocab // 2, -0.0, 0.0)  # -0 equals 0: the first
    return [(row, SamplingParams(), 0.0) for row in rows]


def filtered_rows(vocab):
    chosen = [
        {"top_k": 1},
        {"top_k": 40, "top_p": 0.9},
        {"top_p": 0.95},
        {"top_p": 1e-9},
        {"top_k": 10**12},
        {"min_p": 0.05, "top_k": 7},
        {"min_p": 1.0},
        {"temperature": 0.0},
    ]
    uniform = np.random.default_rng(vocab).random(len(chosen))
    params = [SamplingParams(**{"temperature": 0.8, **each}) for each in chosen]
    return [(drawn_logits(i, vocab), each, float(uniform[i])) for i, each in enumerate(params)]


def extreme_rows(vocab):
    """Flat, far apart, -inf, not finite; the first and the last number that the host may draw."""
    flat, gap = np.zeros(vocab), np.full(vocab, -np.inf)
    gap[[0, vocab // 2, vocab - 1]] = 1.0, 1.0, 0.5
    broken = drawn_logits(3, vocab)
    broken[vocab // 2] = np.nan
    last = 1 - 2.0**-32
    return [
        (flat, SamplingParams(temperature=1.0, top_k=max(1, vocab // 2)), last),
        (flat, SamplingParams(temperature=1.0, top_p=0.5), last),
        (gap, SamplingParams(temperature=1e-30), 0.75),
        (gap, SamplingParams(temperature=1e30, top_p=0.999), 0.0),
        (gap, SamplingParams(temperature=1.0), 0.6),
        (broken, SamplingParams(temperature=1.0, top_k=5), 0.3),
        (drawn_logits(5, vocab, 1e-3), SamplingParams(temperature=1e-6, top_k=3), last),
        (drawn_logits(6, vocab, 1e4), SamplingParams(temperature=2e3, min_p=0.3), 0.2),
    ]


CASES = {
    **{f"greedy-v{v}": case(v, greedy_rows(v), greedy=True) for v in (3, 129, 8000)},
    "greedy-v129280": case(129280, greedy_rows(129280)[:4], greedy=True),
    **{f"sample-v{v}": case(v, filtered_rows(v)) for v in (1, 31, 2048, 5001)},
    **{f"sample-extremes-v{v}": case(v, extreme_rows(v)) for v in (3, 2049)},
    "sample-in-order-v3000": case(
        3000, [(drawn_logits(i, 3000), SamplingParams(temperature=1.0, min_p=0.01 * i), i / 8) for i in range(8)],
        filtered=False,
    ),
}  # fmt: skip
