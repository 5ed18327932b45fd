"""The rules of a grammar in llguidance's dialect of Lark, as far as it takes to see what refers to what."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Name:
    """A rule that is referred to."""

    name: str


@dataclass(frozen=True)
class Row:
    """One after the other; an empty one is anything that ends."""

    parts: tuple[Expression, ...] = ()


@dataclass(frozen=True)
class Choice:
    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Inline:
    """A JSON schema that stands in a rule."""

    schema: Any


Expression = Name | Row | Choice | Inline


class _Unknown(Exception):
    """Something that this reader does not know."""


def read_rules(text: str) -> dict[str, Expression] | None:
    """By name, in order. None for a grammar with what this reader does not know: rules with parameters, grammars in
    grammars."""
    try:
        return dict(_Reader(list(_tokens(text))).rules())
    except (_Unknown, RecursionError, ValueError):
        return None


def token_names(text: str) -> bool:
    """Whether a grammar refers to tokens by their names, or may, as this reader does not know all of it."""
    try:
        return any(kind == "literal" and value.startswith("<") and value[1] != "[" for kind, value in _tokens(text))
    except (_Unknown, RecursionError, ValueError):
        return True


_TOKEN = re.compile(
    r"""(?P<skip> [ \t\f\r]+ | //[^\n]* | \#[^\n]* )
    | (?P<newline> \n )
    | (?P<literal> "(?:\\.|[^"\\\n])*"i? | /(?![/*])(?:\\.|[^/\\\n])+/[a-z]* | <[^<>\s]+> | \d+ )
    | (?P<name> [A-Za-z_]\w* )
    | (?P<inline> %(?:json|regex)\b )
    | (?P<directive> %(?:import|ignore|llguidance)\b[^\n]* )
    | (?P<mark> -> | \.\. | [!?:|()\[\]*+~{},=-] )""",
    re.VERBOSE,
)

Token = tuple[str, Any]  # kind or mark, and its text or value


def _tokens(text: str) -> Iterator[Token]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _Unknown(text[at])
        kind, at = str(found.lastgroup), found.end()
        if kind == "inline":
            value, at = json.JSONDecoder().raw_decode(text, at + len(text[at:]) - len(text[at:].lstrip()))
            yield ("json", value) if found.group() == "%json" else ("literal", "")
        elif kind == "mark":
            yield found.group(), ""
        elif kind != "skip":
            yield kind, found.group()
    yield "newline", "\n"
    yield "end", ""


class _Reader:
    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def rules(self) -> Iterator[tuple[str, Expression]]:
        while self._next != "end":
            if self._next in ("newline", "?", "!", "directive"):
                self._take()
            else:
                name = self._take("name")
                if self._next == "[":
                    self._skip_brackets()
                self._take(":")
                yield name, self._choice(nested=False)

    @property
    def _next(self) -> str:
        return self._tokens[self._at][0]

    def _take(self, kind: str | None = None) -> Any:
        found, value = self._tokens[self._at]
        if kind not in (None, found):
            raise _Unknown(found)
        self._at += 1
        return value

    def _skip_brackets(self) -> None:
        while self._next not in ("]", "end"):
            self._take()
        self._take("]")

    def _choice(self, *, nested: bool) -> Expression:
        parts = [self._row(nested=nested)]
        while self._continues(nested):
            self._take("|")
            parts.append(self._row(nested=nested))
        return parts[0] if len(parts) == 1 else Choice(tuple(parts))

    def _continues(self, nested: bool) -> bool:
        """Whether another choice follows, maybe in one of the next lines."""
        begin = self._at
        while self._next == "newline":
            self._take()
        if self._next == "|":
            return True
        self._at = self._at if nested else begin
        return False

    def _row(self, *, nested: bool) -> Expression:
        parts: list[Expression] = []
        while self._next in ("name", "literal", "json", "(", "[") or (nested and self._next == "newline"):
            if self._next == "newline":
                self._take()
            else:
                parts.append(self._repeated(self._item()))
        if self._next == "->":
            self._take()
            self._take("name")
        return Row(tuple(parts))

    def _item(self) -> Expression:
        kind = self._next
        value = self._take()
        if kind in ("(", "["):
            inner = self._choice(nested=True)
            self._take(")" if kind == "(" else "]")
            return inner if kind == "(" else Row()
        if kind == "name":
            return Name(value)
        return Inline(value) if kind == "json" else Row()

    def _repeated(self, item: Expression) -> Expression:
        """The item, or what is empty where it may come no times."""
        while self._next in ("?", "*", "+", "~", "{", ".."):
            mark = self._next
            self._take()
            least = "1" if mark == "+" else "0"
            if mark == "~":
                least = self._take("literal")
                if self._next == "..":
                    self._take()
                    self._take("literal")
            elif mark == "{":
                least = self._take("literal") if self._next == "literal" else "0"
                while self._next != "}":
                    self._take()
                self._take()
            elif mark == "..":  # a range of characters
                self._take("literal")
            item = item if mark == ".." or int(least) else Choice((Row(), item))
        return item
