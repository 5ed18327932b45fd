"""What came of rounding: by which methods, with what errors, and what had to be done otherwise than was asked for."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from dsv3c.compiler.quantisation.calibration.text import CalibrationText
from dsv3c.compiler.quantisation.choice import Outcome
from dsv3c.compiler.quantisation.sparsity import NO_ZEROS, Zeros

SHOWN = 64  # fallbacks that the manifest names; the side file has all


@dataclass(frozen=True)
class Entry:
    """One matrix: the recipe, its place in it, the part of the model that it belongs to."""

    recipe: str
    place: int
    part: str
    outcome: Outcome

    def to_dict(self) -> dict[str, Any]:
        error = _relative(self.outcome.error, self.outcome.power)
        found = {"tensor": self.recipe, "index": self.place, "method": self.outcome.method, "output_error": error}
        return found | ({"reason": self.outcome.reason} if self.outcome.reason else {})


@dataclass
class RoundingLog:
    """asked: the method. entries come from several threads, in any order."""

    asked: str
    entries: list[Entry] = field(default_factory=list)
    experts: dict[str, list[int]] = field(default_factory=dict)  # tokens that each expert of a layer saw
    zeros: Zeros = NO_ZEROS  # where small weights were set to 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, recipe: str, first: int, part: str, outcomes: Sequence[Outcome]) -> None:
        found = [Entry(recipe, first + number, part, outcome) for number, outcome in enumerate(outcomes)]
        with self._lock:
            self.entries += found

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """What of weights stands for 0."""
        for outcome in outcomes:
            with self._lock:
                self.zeros = self.zeros.plus(outcome.zeros or NO_ZEROS)

    def sparsity(self) -> dict[str, Any]:
        """For the manifest."""
        weights, zero_weights, groups, zero_groups = self.zeros
        return {"zero_weights": _relative(zero_weights, weights), "groups": groups, "zero_groups": zero_groups}

    def manifest(self, text: CalibrationText) -> dict[str, Any]:
        """What it says of how weights were rounded, and for what text."""
        read = {"file": text.name, "sequences": len(text.sequences), "tokens": text.tokens, "sha256": text.sha256}
        return {"methods": self.summary(), "calibration": read}

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        counts = Counter(entry.outcome.method for entry in self.entries)
        fallbacks = self._fallbacks()
        found: dict[str, Any] = {
            "asked": self.asked,
            "counts": dict(sorted(counts.items())),
            "output_error": self._errors(),
            "fallbacks": len(fallbacks),
            "fell_back": [entry.to_dict() for entry in fallbacks[:SHOWN]],
        }
        if self.experts:
            found["experts"] = {name: _seen(tokens) for name, tokens in self.experts.items()}
        return found

    def table(self) -> list[dict[str, Any]]:
        """Every matrix."""
        return [entry.to_dict() for entry in self._sorted()]

    def notes(self) -> list[str]:
        """Short sentences for the user."""
        found = []
        if self.zeros.weights:
            weights, zero_weights, groups, zero_groups = self.zeros
            share = f"{zero_weights / weights:.1%} of the weights are 0, and {zero_groups} of {groups} groups entirely"
            found.append(f"{share}: that saves neither memory nor time")
        fallbacks = self._fallbacks()
        if fallbacks:
            first = fallbacks[0]
            found.append(
                f"{len(fallbacks)} of {len(self.entries)} matrices are not rounded by {self.asked}, the first of them"
                f" {first.recipe}[{first.place}]: {first.outcome.reason}; it took {first.outcome.method}"
            )
        every = [tokens for layer in self.experts.values() for tokens in layer]
        if every and not min(every):
            unseen = sum(not tokens for tokens in every)
            found.append(
                f"{unseen} of {len(every)} experts saw no token of the calibration text: a longer one may help"
            )
        return found

    def _fallbacks(self) -> list[Entry]:
        return [entry for entry in self._sorted() if entry.outcome.reason]

    def _sorted(self) -> list[Entry]:
        return sorted(self.entries, key=lambda entry: (entry.recipe, entry.place))

    def _errors(self) -> dict[str, float]:
        """Error of the outputs over their mean square, of each part of the model."""
        error: Counter[str] = Counter()
        power: Counter[str] = Counter()
        for entry in self._sorted():
            error[entry.part] += entry.outcome.error  # type: ignore[assignment]
            power[entry.part] += entry.outcome.power  # type: ignore[assignment]
        return {part: _relative(error[part], power[part]) for part in sorted(power)}


def _relative(error: float, power: float) -> float:
    return float(f"{error / power:.4g}") if power > 0 else 0.0


def _seen(tokens: Sequence[int]) -> dict[str, float]:
    return {"min": min(tokens), "median": median(tokens), "unseen": sum(not count for count in tokens)}
