"""A JSON body read with types: each error names the path of the field, `messages[2].content`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request

from dsv3c.runtime.artifact import strict_json
from dsv3c.runtime.artifact.strict_json import quote
from dsv3c.runtime.server.errors import FieldInvalid, FieldMissing, JsonInvalid, NotJson

MOST_VALUES = 400_000  # of a body
_DEEPEST = 100  # levels of a body: what reads it further on recurses too


async def read_body(request: Request) -> Body:
    """The body of a request, a JSON object. Raises NotJson, JsonInvalid, and what the guard raises on its way."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise NotJson(found=quote(kind) if kind else "of nothing")
    return parse_body(await request.body())


def parse_body(data: bytes) -> Body:
    try:
        values = strict_json.parse(data, MOST_VALUES)
    except ValueError as error:
        raise JsonInvalid(reason=str(error)[:200]) from None
    if not isinstance(values, dict):
        raise JsonInvalid(reason="it is no object")
    if b"\\" in data:
        _require_unicode(values)
    _require_flat(values)
    return Body(values)


class Body:
    """An object of a body. What is null counts as absent: None. Raises FieldInvalid for other types and values."""

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self.values = values
        self.path = path

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def where(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def wrong(self, name: str, reason: str) -> FieldInvalid:
        return FieldInvalid(field=self.where(name), reason=reason)

    def missing(self, name: str, what: str) -> FieldMissing:
        return FieldMissing(field=self.where(name), what=what)

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, f"it must be a text, not {_kind(value)}")
        return value

    def required_text(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise self.missing(name, "a text")
        return value

    def choice(self, name: str, known: Sequence[str]) -> str | None:
        value = self.text(name)
        if value is not None and value not in known:
            raise self.wrong(name, f"it is {quote(value)}, it must be one of {', '.join(known)}")
        return value

    def flag(self, name: str) -> bool | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, f"it must be true or false, not {_kind(value)}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, f"it must be a number, not {_kind(value)}")
        if not low <= value <= high:
            raise self.wrong(name, f"it is {quote(value)}, it must be from {low:g} to {high:g}")
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, f"it must be an integer, not {_kind(value)}")
        if not low <= value <= high:
            raise self.wrong(name, f"it is {quote(value)}, it must be from {low} to {high}")
        return value

    def entries(self, name: str, most: int) -> list[Any] | None:
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.wrong(name, f"it must be a list, not {_kind(value)}")
        if len(value) > most:
            raise self.wrong(name, f"it has {len(value)} entries, at most {most} can be")
        return value

    def inner(self, name: str) -> Body | None:
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, f"it must be an object, not {_kind(value)}")
        return Body(value, self.where(name))

    def objects(self, name: str, most: int) -> list[Body] | None:
        """A list of objects."""
        found = self.entries(name, most)
        return None if found is None else list(self._objects(name, found))

    def texts(self, name: str, most: int) -> list[str] | None:
        """A text, or a list of them."""
        if isinstance(self.values.get(name), str):
            return [self.required_text(name)]
        found = self.entries(name, most)
        for number, value in enumerate(found or []):
            if not isinstance(value, str):
                raise self.wrong(f"{name}[{number}]", f"it must be a text, not {_kind(value)}")
        return found

    def integers(self, name: str, most: int, highest: int) -> list[int] | None:
        """A list of integers from 0 to `highest`."""
        found = self.entries(name, most)
        for number, value in enumerate(found or []):
            if type(value) is not int or not 0 <= value <= highest:
                raise self.wrong(f"{name}[{number}]", f"it must be an integer from 0 to {highest}")
        return found

    def _objects(self, name: str, found: list[Any]) -> Iterator[Body]:
        for number, value in enumerate(found):
            if not isinstance(value, dict):
                raise self.wrong(f"{name}[{number}]", f"it must be an object, not {_kind(value)}")
            yield Body(value, self.where(f"{name}[{number}]"))


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "null")


_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}


def _require_unicode(value: Any) -> None:
    """JSON can write halves of characters, which no text has."""
    for part in _parts(value):
        if isinstance(part, str):
            try:
                part.encode()
            except UnicodeEncodeError:
                raise JsonInvalid(reason=f"{quote(part)} has a lone surrogate") from None


def _require_flat(value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for part in level if isinstance(part, dict | list) for inner in _inner(part)]
        if not level:
            return
    raise JsonInvalid(reason=f"it is nested more than {_DEEPEST} levels deep")


def _inner(part: dict[str, Any] | list[Any]) -> Iterator[Any]:
    yield from part.values() if isinstance(part, dict) else part


def _parts(value: Any) -> Iterator[Any]:
    """Keys and values of all levels."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        yield part
        if isinstance(part, dict):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, list):
            waiting += part
