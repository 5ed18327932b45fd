"""JSON that nobody vouches for, stricter than `json.loads`, and bounded before it is built."""

from __future__ import annotations

import json
import math
import reprlib
from typing import Any, NoReturn

_MAX_DIGITS = 400  # of an integer; float64 ends at 309

_quoter = reprlib.Repr()
_quoter.maxstring = _quoter.maxother = _quoter.maxlong = 80
_quoter.maxlevel = 2


def quote(value: object) -> str:
    """A printable form of `value` that is never long, whatever a file held."""
    return _quoter.repr(value)


def require_few_values(data: bytes, limit: int) -> None:
    """Raises ValueError for a JSON text of more than `limit` values, without parsing it: time and memory grow with the
    values, not with the bytes."""
    if sum(map(data.count, (b",", b"[", b"{"))) > limit:
        raise ValueError(f"it has more than {limit} values")


def parse(data: bytes, max_values: int) -> Any:
    """What the JSON text `data` says.

    Raises ValueError with the reason for what is not UTF-8 or not JSON, for a key given twice, for numbers that are not
    finite or of thousands of digits, for nesting deeper than Python's stack and for more than `max_values` values,
    which are counted before any is made.
    """
    require_few_values(data, max_values)
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"the key {quote(key)} is given twice")
        seen.add(key)
    return found


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"the number {quote(text)} has {len(text)} digits")
    return int(text)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {quote(text)} is too large")
    return value
