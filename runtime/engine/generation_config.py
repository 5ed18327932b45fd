"""The defaults in a checkpoint's generation_config.json, whose values were written for many programs.

A default never keeps a model from generating: values by which others turn a filter off turn it off, whole floats are
integers, and what is of no use is left out. The compiler applies the same rule and tells what it left out; artifacts
made before that hold the file as the checkpoint had it.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

_LARGEST = 1e300
_LARGEST_COUNT = 2**31 - 1


def usable(config: Mapping[str, Any], vocab_size: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`config` with the values that generating uses in the one form they have here, and a sentence for each that it
    leaves out. All other keys stay as they are."""
    kept, notes = _usable_values(config)
    for name, rule in _ID_RULES.items():
        found = kept.pop(name, None)
        given = found if isinstance(found, list) else [] if found is None else [found]
        read = [rule(value, vocab_size) for value in given]
        right = [value for value in read if value is not None]
        if right:
            kept[name] = right[0] if name == "eos_token_id" and not isinstance(found, list) else right
        wrong = [value for value, meant in zip(given, read, strict=True) if meant is None]
        if wrong:
            notes += (_note(name, wrong, f"{_EXPECTED[name]} below {vocab_size}"),)
    return kept, notes


def _usable_values(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """As `usable`, of all values but ids."""
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


def _word(value: Any, vocab_size: int) -> list[int] | None:
    word = [_token(token, vocab_size) for token in value] if isinstance(value, list) else []
    return [token for token in word if token is not None] if word and None not in word else None


def _at_least_one(value: Any) -> int | None:
    return None if (count := _count(value)) is None else max(1, count)


def _some(value: Any) -> int | None:
    return _count(value) or None


def _early_stopping(value: Any) -> bool | str | None:
    return "never" if value == "never" else _flag(value)


def _strings(value: Any) -> list[str] | None:
    texts = [value] if isinstance(value, str) else value
    right = isinstance(texts, list) and all(isinstance(text, str) and text for text in texts)
    return texts if right else None


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
    "typical_p": _between(0, 1, 1.0),
    "repetition_penalty": _between(0, _LARGEST, 1.0),
    "frequency_penalty": _number,
    "presence_penalty": _number,
    "no_repeat_ngram_size": _count,
    "max_new_tokens": _some,
    "min_new_tokens": _count,
    "min_length": _count,
    "num_beams": _at_least_one,
    "num_beam_groups": _at_least_one,
    "diversity_penalty": _between(0, _LARGEST, 0.0),
    "length_penalty": _number,
    "early_stopping": _early_stopping,
    "num_return_sequences": _at_least_one,
    "stop_strings": _strings,
    "max_time": _between(math.ulp(0.0), _LARGEST, None),
}
_ID_RULES: Mapping[str, Callable[[Any, int], Any]] = {
    "eos_token_id": _token,
    "suppress_tokens": _token,
    "bad_words_ids": _word,
}
PARAMETERS = (*_RULES, "suppress_tokens", "bad_words_ids")  # the names of defaults for generating
_EXPECTED = {"eos_token_id": "an id", "suppress_tokens": "ids", "bad_words_ids": "words of ids"}
