"""The defaults in a checkpoint's generation_config.json, whose values were written for many programs.

A default never keeps a model from generating: values by which others turn a filter off turn it off, whole floats are
integers, and what is of no use is left out. The compiler applies the same rule and tells what it left out; artifacts
made before that hold the file as the checkpoint had it.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

_LARGEST = 1e300
_LARGEST_COUNT = 2**31 - 1


def usable(config: Mapping[str, Any], vocab_size: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`config` with the values that generating uses in the one form they have here, and a sentence for each that it
    leaves out. All other keys stay as they are."""
    kept, notes = usable_sampling(config)
    found = kept.pop("eos_token_id", None)
    given = found if isinstance(found, list) else [] if found is None else [found]
    ends = [token for value in given if (token := _token(value, vocab_size)) is not None]
    if ends:
        kept["eos_token_id"] = ends if isinstance(found, list) else ends[0]
    wrong = [value for value in given if _token(value, vocab_size) is None]
    if wrong:
        notes += (_note("eos_token_id", wrong, f"an id below {vocab_size}"),)
    return kept, notes


def usable_sampling(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """As `usable`, of the values that say how a token is drawn."""
    kept, notes = dict(config), []
    for name, rule in _RULES.items():
        found = kept.pop(name, None)
        value = None if found is None else rule(found)
        if value is not None:
            kept[name] = value
        elif found is not None:
            notes.append(_note(name, found, "a value for it"))
    return kept, tuple(notes)


def _note(name: str, value: Any, expected: str) -> str:
    return f"generation_config.json: {name} is {reprlib.repr(value)}, which is not {expected}; it is left out"


def _flag(value: Any) -> bool | None:
    return bool(value) if isinstance(value, bool) or value in (0, 1) else None


def _number(value: Any) -> float | None:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if real and -_LARGEST <= value <= _LARGEST else None


def _count(value: Any) -> int | None:
    number = _number(value)
    if number is None or not number.is_integer():
        return None
    return max(0, min(int(number), _LARGEST_COUNT))


def _token(value: Any, vocab_size: int) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number.is_integer() and 0 <= number < vocab_size else None


def _between(low: float, high: float, off: float | None) -> Callable[[Any], float | None]:
    """Numbers from `low` to `high`; what is at or below 0 is `off`, where the filter has such a value."""

    def rule(value: Any) -> float | None:
        number = _number(value)
        if number is not None and number <= 0 and off is not None:
            return off
        return number if number is not None and low <= number <= high else None

    return rule


_RULES: Mapping[str, Callable[[Any], Any]] = {
    "do_sample": _flag,
    "temperature": _between(0, _LARGEST, None),
    "top_k": _count,
    "top_p": _between(0, 1, 1.0),
    "min_p": _between(0, 1, 0.0),
    "repetition_penalty": _between(0, _LARGEST, 1.0),
}
