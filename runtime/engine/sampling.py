"""Choose the next token of one text: processors, filters, and one random number for each token that is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.plan import DRAW_WORDS
from dsv3c.runtime.engine.history import History
from dsv3c.runtime.engine.params import SamplingParams
from dsv3c.runtime.engine.processors import Processor, processors_for
from dsv3c.runtime.engine.processors.filters import Floats, candidates, divisor
from dsv3c.runtime.errors import LogitsNotFinite, NoTokenAllowed


class Draw(NamedTuple):
    """What a device needs to draw a token of one row of logits.

    form: "greedy", "ordered" (temperature and min-p: ids in their order) or "filtered" (top-k or top-p, too).
    words i32 [8]: 1/temperature (bits of f32; 0 is greedy), top_k (0 is off), top_p in units of 2^-31 (0 is off), min_p
    (bits of f32), the uniform number in units of 2^-32.
    """

    form: str
    words: NDArray[np.int32]


FORMS = ("greedy", "ordered", "filtered")  # each draws what the ones before it draw, too


class Sampler:
    """Chooses the tokens of one text, by logits [V] that it leaves as they are.

    The same parameters, seed, stream and logits give the same ids. Each token that is drawn takes one random number,
    whoever draws it; a greedy one takes none. stream: which of several results of one request this is. more: processors
    that come after those of the parameters.
    """

    def __init__(
        self,
        params: SamplingParams,
        vocab_size: int,
        end_tokens: frozenset[int] = frozenset(),
        stream: int = 0,
        more: Many[Processor] = (),
    ) -> None:
        self._params = params.checked(vocab_size)
        self._processors = (*processors_for(params, end_tokens), *more)
        self._scratch = np.empty(vocab_size if self._processors else 0, np.float32)
        # Stream 0 is numpy's own generator of that seed.
        seed = np.random.SeedSequence(params.seed, spawn_key=(stream,)) if stream else params.seed
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._ahead: list[float] = []  # numbers that were looked at and not yet taken

    @property
    def greedy(self) -> bool:
        return self._params.greedy

    def sample(self, logits: Floats, history: History) -> int:
        """The next token. Raises LogitsNotFinite, NoTokenAllowed, and then takes no number."""
        logits = self._processed(logits, history)
        if self.greedy:
            return int(logits.argmax())
        token = self._drawn(logits, self._number(0))
        self._ahead.pop(0)
        return token

    def scores(self, logits: Floats, history: History) -> Floats:
        """f32 [V], a copy: after all processors, and unless greedy divided by the temperature, -inf where cut off.

        Raises LogitsNotFinite, NoTokenAllowed. Takes no number.
        """
        logits = self._processed(logits, history)
        if self.greedy:
            return logits.copy()
        ids, _ = candidates(logits, float(logits.max()), self._params)
        kept = slice(None) if ids is None else ids
        scores = np.full(logits.size, -np.inf, np.float32)
        scores[kept] = logits[kept] / divisor(self._params.temperature)
        return scores

    def draw(self, ahead: int = 0) -> Draw | None:
        """How a device draws the token that is `ahead` places after the next one, with the number that `sample` would
        take there; `token` takes it from the device. None where the host must change logits, or look at them."""
        params, words = self._params, np.zeros(DRAW_WORDS, np.int32)
        if self._processors or params.typical_p < 1 or params.logprobs is not None:
            return None
        if self.greedy:
            return Draw("greedy", words)
        words[0] = _bits(1 / divisor(params.temperature))
        words[1] = min(params.top_k, 2**31 - 1)
        words[2] = min(math.ceil(params.top_p * 2**31), 2**31 - 1) if params.top_p < 1 else 0
        words[3] = _bits(params.min_p)
        words[4] = np.uint32(self._number(ahead) * 2**32).view(np.int32)
        return Draw("filtered" if words[1] or words[2] else "ordered", words)

    def token(self, drawn: int) -> int:
        """The id that a device has drawn as the next token. Raises LogitsNotFinite for the negative ones, by which it
        says so, and then takes no number."""
        if drawn < 0:
            raise LogitsNotFinite(value={-1: math.nan, -2: math.inf}.get(drawn, -math.inf))
        if not self.greedy:
            self._number(0)
            self._ahead.pop(0)
        return drawn

    def guess(self, logits: Floats, ahead: int) -> int:
        """What a draft proposes for the token that is `ahead` places after the next one: drawn from the draft's logits
        with the number that `sample` will take there, so that equal logits give equal tokens. Takes none. Processors
        are left out, since what they go by is not settled yet. Raises LogitsNotFinite."""
        _require_finite(logits)
        return int(logits.argmax()) if self.greedy else self._drawn(logits, self._number(ahead))

    def _processed(self, logits: Floats, history: History) -> Floats:
        _require_finite(logits)
        if not self._processors:
            return logits
        self._scratch[:] = logits
        for processor in self._processors:
            processor(self._scratch, history)
        best = float(self._scratch.max())
        if best == -math.inf:
            raise NoTokenAllowed(tokens=len(history))
        if not math.isfinite(best):
            raise LogitsNotFinite(value=best)
        return self._scratch

    def _drawn(self, logits: Floats, number: float) -> int:
        ids, weights = candidates(logits, float(logits.max()), self._params)
        total = np.cumsum(weights, dtype=np.float64)
        index = int(np.searchsorted(total, number * total[-1], side="right"))
        index = min(index, len(total) - 1)
        return index if ids is None else int(ids[index])

    def _number(self, ahead: int) -> float:
        while len(self._ahead) <= ahead:
            self._ahead.append(self._random.random())
        return self._ahead[ahead]


def _require_finite(logits: Floats) -> None:
    best = float(logits.max())  # of NaN among others, NaN
    if not math.isfinite(best):
        raise LogitsNotFinite(value=best)


def _bits(value: float | np.floating[Any]) -> np.int32:
    return np.float32(value).view(np.int32)
