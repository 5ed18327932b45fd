"""Calls between <tool_call> and </tool_call>: a JSON object, or a name and tags around each argument.

Such tags may also stand in a string of the arguments, where they end nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from dsv3c.runtime.text.dialects.forms import HEAD_LIMIT, LOST, MORE, NAME, Body, Step, Tools, dumped
from dsv3c.runtime.text.dialects.pieces import CallArguments, CallBegun, Piece, Text
from dsv3c.runtime.text.dialects.schemas import argument_kinds, is_known, kind_of
from dsv3c.runtime.text.scan import overlap

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_KEY, _END_KEY, _VALUE, _END_VALUE = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"


class JsonObject:
    """{"name": NAME, "arguments": {...}}"""

    opener, tags = OPEN, (OPEN, CLOSE)

    def fits(self, first: str) -> bool:
        return first == "{"

    def body(self, tools: Tools) -> Body:
        return JsonBody()

    def opening(self, name: str | None) -> str:
        return f'{OPEN}\n{{"name": "' if name is None else f'{OPEN}\n{{"name": {dumped(name)}, "arguments": '

    def around(self, name: str) -> tuple[str, str]:
        return f'{dumped(name)[1:]}, "arguments": ', f"}}\n{CLOSE}"

    def write(self, name: str, arguments: Mapping[str, Any], number: int) -> str:
        return f'{OPEN}\n{{"name": {dumped(name)}, "arguments": {dumped(arguments)}}}\n{CLOSE}'


class JsonBody:
    """Tells arguments as they come where the name stands before them, and all at once at the end elsewhere."""

    _HEAD = re.compile(
        r'\s*\{\s*"name"\s*:\s*(?P<name>"(?:[^"\\\x00-\x1f]|\\.){1,256}")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
    )
    _TAIL = re.compile(rf"\s*\}}?\s*{CLOSE}")

    def __init__(self) -> None:
        self._begun = self._value_over = self._in_string = self._escaped = False
        self._depth = 0

    def take(self, text: str) -> Step:
        if not self._begun:
            return self._begin(text)
        over = 0 if self._value_over else self._scan(text)
        if over is None:
            return Step([CallArguments(text)], len(text), "more")
        self._value_over = True
        pieces: list[Piece] = [CallArguments(text[:over])]
        tail = self._TAIL.match(text, over)
        if tail is not None:
            return Step(pieces, tail.end(), "done")
        return Step(pieces, over, "more" if self._is_tail(text[over:]) else "lost")

    def end(self, text: str) -> list[Piece]:
        return []  # at most a part of the tail

    def _begin(self, text: str) -> Step:
        close = text.find(CLOSE)
        head = self._HEAD.match(text, 0, len(text) if close < 0 else close)
        if head is not None and (name := _parsed(head["name"])) is not None:
            self._begun = True
            pieces, used, state = self.take(text[head.end() :])
            return Step([CallBegun(name), *pieces], head.end() + used, state)
        if close < 0:
            return MORE
        whole = _whole(text[:close])
        return LOST if whole is None else Step(whole, close + len(CLOSE), "done")

    def _scan(self, text: str) -> int | None:
        """Where the arguments end: behind their last bracket, or before a tag that no JSON has there."""
        for at, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped, self._in_string = char == "\\", char != '"'
            elif char == '"':
                self._in_string = True
            elif char == "<":
                return at
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return at + 1
        return None

    def _is_tail(self, text: str) -> bool:
        return CLOSE.startswith(text.lstrip().removeprefix("}").lstrip())


def _whole(text: str) -> list[Piece] | None:
    found = _parsed(text)
    if not isinstance(found, dict) or not isinstance(found.get("name"), str) or not found["name"]:
        return None
    given = [found[key] for key in found if key in ("arguments", "parameters")]
    if len(given) != len(found) - 1 or len(given) > 1:  # there is more, which would be lost
        return None
    arguments = given[0] if given else {}
    parsed = _parsed(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(parsed, dict):
        return None
    written = arguments if isinstance(arguments, str) else dumped(arguments)
    return [CallBegun(found["name"]), CallArguments(written)]


class ArgumentTags:
    """NAME, then for each argument <arg_key>KEY</arg_key> and <arg_value>VALUE</arg_value>: texts as they are, all else
    as JSON. The tool's schema says which it is."""

    opener, tags = OPEN, (OPEN, CLOSE, _KEY, _END_KEY, _VALUE, _END_VALUE)

    def fits(self, first: str) -> bool:
        return first != "{"

    def body(self, tools: Tools) -> Body:
        return ArgumentTagsBody(tools)

    def opening(self, name: str | None) -> str:
        return OPEN if name is None else f"{OPEN}{name}\n"

    def around(self, name: str) -> None:
        return None

    def write(self, name: str, arguments: Mapping[str, Any], number: int) -> str:
        lines = [f"{OPEN}{name}"]
        for key, value in arguments.items():
            lines.append(f"{_KEY}{key}{_END_KEY}")
            lines.append(f"{_VALUE}{value if isinstance(value, str) else dumped(value)}{_END_VALUE}")
        return "\n".join([*lines, CLOSE])


class ArgumentTagsBody:
    """Writes JSON of the arguments; those that are texts by the schema are told as they come."""

    _HEAD = re.compile(rf"\s*(?P<name>{NAME})\s*(?=(?P<next>{_KEY}|{CLOSE}))")
    _NEXT = re.compile(rf"\s*{_KEY}(?P<key>[^<]{{0,{HEAD_LIMIT}}}){_END_KEY}\s*{_VALUE}")
    _CLOSE = re.compile(rf"\s*{CLOSE}")

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._name: str | None = None
        self._kinds: frozenset[str] | None = None  # of the value that is being read
        self._count = 0

    def take(self, text: str) -> Step:
        if self._name is None:
            return self._begin(text)
        pieces: list[Piece] = []
        used, state = 0, "more"
        while state == "more":
            step = self._next(text[used:]) if self._kinds is None else self._value(text[used:])
            pieces, used, state = pieces + step.pieces, used + step.used, step.state
            if not step.used:
                break
        return Step(pieces, used, state)  # type: ignore[arg-type]

    def end(self, text: str) -> list[Piece]:
        if self._kinds is not None:
            return [CallArguments(_escaped(text) if self._kinds == {"string"} else text)]
        return [] if CLOSE.startswith(text.strip()) else [Text(text)]

    def _begin(self, text: str) -> Step:
        head = self._HEAD.match(text, 0, HEAD_LIMIT)
        if head is not None:
            if head["next"] == CLOSE and not is_known(self._tools, head["name"]):
                return LOST  # any word between the two tags would be a call
            self._name = head["name"]
            pieces, used, state = self.take(text[head.end() :])
            return Step([CallBegun(self._name), *pieces], head.end() + used, state)
        return MORE if len(text) < HEAD_LIMIT and self._may_be_head(text) else LOST

    def _may_be_head(self, text: str) -> bool:
        name, bracket, tag = text.partition("<")
        return len(name.split()) <= 1 and any(each.startswith(bracket + tag) for each in (_KEY, CLOSE))

    def _next(self, text: str) -> Step:
        """What follows a value, or the name."""
        found = self._NEXT.match(text)
        if found is not None:
            self._kinds = argument_kinds(self._tools, self._name, found["key"])
            start = f"{', ' if self._count else '{'}{dumped(found['key'])}: "
            self._count += 1
            return Step([CallArguments(start + ('"' if self._kinds == {"string"} else ""))], found.end(), "more")
        close = self._CLOSE.match(text)
        if close is not None:
            return Step([self._closing], close.end(), "done")
        return MORE if _may_go_on(text.lstrip()) else Step([self._closing], 0, "lost")

    def _value(self, text: str) -> Step:
        kinds, end = self._kinds or frozenset(), text.find(_END_VALUE)
        if end >= 0:
            self._kinds = None
            value = text[:end]
            written = f'{_escaped(value)}"' if kinds == {"string"} else _encoded(value, kinds)
            return Step([CallArguments(written)], end + len(_END_VALUE), "more")
        if kinds != {"string"}:
            return MORE
        certain = len(text) - overlap(text, [_END_VALUE])
        return Step([CallArguments(_escaped(text[:certain]))], certain, "more")

    @property
    def _closing(self) -> CallArguments:
        return CallArguments("}" if self._count else "{}")


def _may_go_on(text: str) -> bool:
    """Whether more text may make the beginning of an argument of this, or the end of the call."""
    if not text.startswith(_KEY):
        return _KEY.startswith(text) or CLOSE.startswith(text)
    key, bracket, rest = text[len(_KEY) :].partition("<")
    tags = bracket + rest
    if len(key) > HEAD_LIMIT:
        return False
    if not tags.startswith(_END_KEY):
        return _END_KEY.startswith(tags)
    return _VALUE.startswith(tags[len(_END_KEY) :].lstrip())


def _escaped(text: str) -> str:
    return dumped(text)[1:-1]


def _encoded(value: str, kinds: frozenset[str]) -> str:
    """JSON of a value that is none of a text for certain. No kinds: nothing is known of it."""
    found = _parsed(value)
    if found is None and value.strip() != "null":
        return dumped(value)
    if "string" in kinds and kind_of(found) not in kinds:
        return dumped(value)
    return value.strip()


def _parsed(text: str) -> Any:
    """Its value, None for what is no JSON."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
