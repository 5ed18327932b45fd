"""Choose the next token: parameters as users of other runtimes know them, and a seeded sampler.

The filters apply in the order of Hugging Face transformers: repetition penalty, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.plan import DRAW_WORDS
from dsv3c.runtime.engine.generation_config import usable_sampling
from dsv3c.runtime.errors import LogitsNotFinite, ParameterInvalid, UnknownParameter

Floats = NDArray[np.float32]
Ids = NDArray[np.intp]

# Only the head of a large vocabulary is ever sorted: ids whose weight reaches the first of these limits that takes in
# enough of them. The best id weighs 1, the last limit takes in all.
_LIMITS = (1e-2, 1e-4, 1e-6, 0.0)


@dataclass(frozen=True)
class SamplingParams:
    """How to generate. Raises ParameterInvalid for a value that makes no sense.

    temperature 0 takes the likeliest token. top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off.
    seed None draws a fresh one. max_new_tokens is cut to what the context still holds.
    stop: strings that end the text (they are not part of it).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        self._number("temperature", 0.0, math.inf, "it must be a finite number that is not negative")
        self._integer("top_k", 0, "it must be an integer that is not negative (0 is off)")
        self._number("top_p", math.ulp(0.0), 1.0, "it must be above 0 and at most 1 (1 is off)")
        self._number("min_p", 0.0, 1.0, "it must be from 0 to 1 (0 is off)")
        self._number("repetition_penalty", math.ulp(0.0), math.inf, "it must be a finite number above 0 (1 is off)")
        self._integer("max_new_tokens", 1, "it must be an integer of at least 1")
        if self.seed is not None:
            self._integer("seed", 0, "it must be an integer that is not negative")
        if not isinstance(self.ignore_eos, bool):
            raise ParameterInvalid(name="ignore_eos", value=self.ignore_eos, reason="it must be True or False")
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, list | tuple) or not all(isinstance(text, str) and text for text in stop):
            raise ParameterInvalid(name="stop", value=self.stop, reason="it must be non-empty strings")
        object.__setattr__(self, "stop", tuple(stop))

    def updated(self, changes: Mapping[str, Any]) -> SamplingParams:
        """These parameters with some replaced. Raises UnknownParameter, ParameterInvalid."""
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise UnknownParameter(name=name, known=", ".join(known))
        return replace(self, **changes)

    @staticmethod
    def from_generation_config(config: Mapping[str, Any]) -> SamplingParams:
        """Defaults of a checkpoint's generation_config.json: greedy unless it says `do_sample`."""
        said, _ = usable_sampling(config)
        names = ("top_k", "top_p", "min_p", "repetition_penalty")
        temperature = said.get("temperature", 1.0) if said.get("do_sample") else 0.0
        return SamplingParams(temperature=temperature, **{name: said[name] for name in names if name in said})

    def _number(self, name: str, low: float, high: float, reason: str) -> None:
        value = getattr(self, name)
        real = isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool)
        # An integer beyond the range of float compares fine but cannot be used.
        if not real or not low <= value <= high or not math.isfinite(min(value, 1e300)) or value > 1e300:
            raise ParameterInvalid(name=name, value=value, reason=reason)

    def _integer(self, name: str, low: int, reason: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
            raise ParameterInvalid(name=name, value=value, reason=reason)


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
    """Draws token ids for one sequence. The same parameters, seed and logits give the same ids."""

    def __init__(self, params: SamplingParams, vocab_size: int) -> None:
        self._params = params
        self._random = np.random.Generator(np.random.PCG64(params.seed))
        self._seen = np.zeros(vocab_size if params.repetition_penalty != 1 else 0, np.bool_)
        self._repeated = np.zeros(0, np.intp)

    def observe(self, tokens: Many[int] | NDArray[np.int32]) -> None:
        """Count tokens of the prompt or the answer as repeated from now on."""
        if self._seen.size:
            self._seen[tokens] = True
            self._repeated = np.flatnonzero(self._seen)

    def sample(self, logits: Floats) -> int:
        """The next token for logits [V], which are left unchanged. Raises LogitsNotFinite."""
        if self._seen.size:
            logits = self._penalised(logits)
        best = int(logits.argmax())
        if not math.isfinite(logits[best]):
            raise LogitsNotFinite(value=float(logits[best]))
        if self._params.temperature == 0:
            return best
        ids, weights = self._candidates(logits, float(logits[best]))
        total = np.cumsum(weights, dtype=np.float64)
        index = int(np.searchsorted(total, self._random.random() * total[-1], side="right"))
        index = min(index, len(total) - 1)
        return index if ids is None else int(ids[index])

    def draw(self) -> Draw | None:
        """The next token as a device draws it, `token` takes it from there; None where the host must change logits.

        Takes the same uniform number as `sample` would.
        """
        params, words = self._params, np.zeros(DRAW_WORDS, np.int32)
        if self._seen.size:
            return None
        if params.temperature == 0:
            return Draw("greedy", words)
        words[0] = _bits(1 / _divisor(params.temperature))
        words[1] = min(params.top_k, 2**31 - 1)
        words[2] = min(math.ceil(params.top_p * 2**31), 2**31 - 1) if params.top_p < 1 else 0
        words[3] = _bits(params.min_p)
        words[4] = np.uint32(self._random.random() * 2**32).view(np.int32)
        return Draw("filtered" if words[1] or words[2] else "ordered", words)

    def token(self, drawn: int) -> int:
        """The id that a device has drawn. Raises LogitsNotFinite for the negative ones, by which it says so."""
        if drawn < 0:
            raise LogitsNotFinite(value={-1: math.nan, -2: math.inf}.get(drawn, -math.inf))
        return drawn

    def _penalised(self, logits: Floats) -> Floats:
        logits, penalty = logits.copy(), _divisor(self._params.repetition_penalty)
        seen = logits[self._repeated]
        logits[self._repeated] = np.where(seen > 0, seen / penalty, seen * penalty)
        return logits

    def _candidates(self, logits: Floats, best: float) -> tuple[Ids | None, Floats]:
        """Ids (None: all, in order) with their unnormalised probabilities, after the filters; the best weighs 1."""
        params = self._params
        temperature = _divisor(params.temperature)
        with np.errstate(over="ignore", under="ignore"):
            weights = np.exp((logits - np.float32(best)) / temperature)
        ids = None
        if 0 < params.top_k < logits.size:
            ids = _largest(weights, params.top_k)
        if params.top_p < 1:
            ids = _nucleus(weights, ids, params.top_p)
        if params.min_p > 0:
            # The share of the likeliest is the weight itself.
            ids = np.flatnonzero(weights >= params.min_p) if ids is None else ids[weights[ids] >= params.min_p]
        return ids, weights if ids is None else weights[ids]


def _divisor(value: float) -> np.float32:
    """A temperature or a penalty, kept where float32 can divide by it; what overflows is -inf, as it should be."""
    return np.float32(min(max(value, 1e-30), 1e30))


def _bits(value: float | np.floating[Any]) -> np.int32:
    return np.float32(value).view(np.int32)


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


def _reaching(weights: Floats, ids: Ids, goal: float) -> Ids:
    count = int(np.searchsorted(np.cumsum(weights[ids], dtype=np.float64), goal, side="left")) + 1
    return ids[:count]


def _sorted(weights: Floats, ids: Ids) -> Ids:
    return ids[np.argsort(-weights[ids], kind="stable")]


def _sum(weights: Floats) -> float:
    return float(weights.sum(dtype=np.float64))
