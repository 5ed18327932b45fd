"""How one call is written, between the tag that opens calls and the one that closes it.

A `Form` is a few words of a format; a `Body` reads one call of that form. A body is shown all that is not yet used, and
says what it makes of it: nothing is used before the call is certain, so that what is none can be given as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from collections.abc import Sequence as Many
from typing import Any, Literal, NamedTuple, Protocol

from dsv3c.runtime.text.dialects.pieces import CallArguments, CallBegun, Piece
from dsv3c.runtime.text.scan import first_of, overlap

Tools = Many[Mapping[str, Any]]  # as the OpenAI API has them: {"type": "function", "function": {...}}
NAME = r'[^\s<>{}"`]+'  # of a tool
HEAD_LIMIT = 512  # characters within which a call has told its name
_TAG = re.compile(r"<[^<>]+>")
_PART = re.compile(r"\{(?:name|number|arguments)\}")


class Step(NamedTuple):
    """What a body made of a text: pieces, how many characters it is done with, and whether the call goes on, is over,
    or is broken off by what is not used."""

    pieces: list[Piece]
    used: int
    state: Literal["more", "done", "lost"]


MORE, LOST = Step([], 0, "more"), Step([], 0, "lost")


class Body(Protocol):
    def take(self, text: str) -> Step:
        """Step through a text that begins where the last step left it. The first piece is the call's beginning."""
        ...

    def end(self, text: str) -> list[Piece]:
        """What to tell of an unused rest when the answer ends within a call that was begun."""
        ...


class Form(Protocol):
    @property
    def tags(self) -> tuple[str, ...]:
        """All that may be special tokens."""
        ...

    @property
    def opener(self) -> str: ...

    def fits(self, first: str) -> bool:
        """Whether a call may begin with this character after its opener and blanks."""
        ...

    def body(self, tools: Tools) -> Body: ...

    def opening(self, name: str | None) -> str:
        """What a model that has to call a tool begins with: that tool, or any."""
        ...

    def around(self, name: str) -> tuple[str, str] | None:
        """What stands before and behind the arguments of a call of that tool, after what any call begins with; {number}
        for how many there were before it. None where arguments are no JSON."""
        ...

    def write(self, name: str, arguments: Mapping[str, Any], number: int) -> str:
        """A call. number: how many there were before it in the conversation."""
        ...


def dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


class Marked:
    """A name and JSON between tags that are tokens of their own. Tags within the JSON end it."""

    def __init__(self, head: str, written: str, tags: tuple[str, ...]) -> None:
        """head: a pattern of all before the arguments, with a group `name`; it matches no sooner than all of it is
        there. written: a call as the model writes it, with {name}, {number} and {arguments}; JSON may be in a fence of
        Markdown. tags: those that open and close a call, and others that it cannot have in it."""
        self.opener, self.closer = tags[:2]
        self.ends = tags
        self.head = re.compile(head)
        self._written = written
        self.fenced = "```" in written

    @property
    def tags(self) -> tuple[str, ...]:
        return (*self.ends, *_TAG.findall(self._written))

    def fits(self, first: str) -> bool:
        return True

    def body(self, tools: Tools) -> Body:
        return MarkedBody(self)

    def opening(self, name: str | None) -> str:
        before, _, rest = self._written.partition("{name}")
        after, _, _ = rest.partition("{arguments}")
        return before if name is None else before + name + after.replace("{number}", "0")

    def around(self, name: str) -> tuple[str, str]:
        before, _, behind = self._written.partition("{name}")[2].partition("{arguments}")
        return name + before, behind

    def write(self, name: str, arguments: Mapping[str, Any], number: int) -> str:
        parts = {"{name}": name, "{number}": str(number), "{arguments}": dumped(arguments)}
        return _PART.sub(lambda part: parts[part[0]], self._written)


class MarkedBody:
    def __init__(self, form: Marked) -> None:
        self._form = form
        self._begun = self._some = False

    def take(self, text: str) -> Step:
        end = first_of(text, self._form.ends)
        if not self._begun:
            return self._begin(text, end)
        if end is None:
            stable = self._trimmed(text[: len(text) - overlap(text, self._form.ends)])
            return Step(self._arguments(stable), len(stable), "more")
        at, tag = end
        pieces = self._arguments(self._closed(text[:at]))
        used = at + len(tag) if tag == self._form.closer else at
        return Step(pieces if self._some else [CallArguments("{}")], used, "done")

    def end(self, text: str) -> list[Piece]:
        return self._arguments(self._closed(text))

    def _begin(self, text: str, end: tuple[int, str] | None) -> Step:
        limit = HEAD_LIMIT if end is None else min(end[0], HEAD_LIMIT)
        head = self._form.head.match(text, 0, limit)
        if head is None:
            return MORE if end is None and len(text) < HEAD_LIMIT else LOST
        self._begun = True
        pieces, used, state = self.take(text[head.end() :])
        return Step([CallBegun(head["name"]), *pieces], head.end() + used, state)

    def _arguments(self, text: str) -> list[Piece]:
        text = text if self._some else text.lstrip()
        self._some |= bool(text)
        return [CallArguments(text)] if text else []

    def _trimmed(self, text: str) -> str:
        """Without what may belong to the closing fence."""
        text = text.rstrip()
        return text.rstrip("`").rstrip() if self._form.fenced else text

    def _closed(self, text: str) -> str:
        text = text.rstrip()
        return text.removesuffix("```").rstrip() if self._form.fenced else text
