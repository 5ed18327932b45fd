"""Reads an answer while it is written: thoughts, text, calls of tools.

However the answer is cut into texts, the pieces are the same, neighbours of a kind joined. Nothing is lost: outside of
calls each character stands in a piece, in its order, but for the tags of thoughts and blanks that follow these or touch
a call. What only looks like a call is text, with its tags.
"""

from __future__ import annotations

from collections.abc import Iterable

from dsv3c.runtime.text.dialects.formats import Format
from dsv3c.runtime.text.dialects.forms import Body, Tools
from dsv3c.runtime.text.dialects.pieces import Piece, Text, Thought, merged
from dsv3c.runtime.text.scan import first_of, overlap
from dsv3c.runtime.text.thoughts import ThoughtFilter


class Reader:
    """Of one answer. Without tools nothing in it is a call."""

    def __init__(self, form: Format, opened: bool, tools: Tools) -> None:
        """opened: whether the answer begins within thoughts."""
        self._thoughts = ThoughtFilter(opened, form.openers if tools and form.ends_thoughts else ())
        self._calls = CallReader(form, tools) if tools else None

    @property
    def has_called(self) -> bool:
        """Whether a call is over."""
        return self._calls is not None and self._calls.has_called

    def push(self, text: str) -> list[Piece]:
        """What is certain after this text, in order."""
        return self._read(self._thoughts.push(text))

    def flush(self) -> list[Piece]:
        """What was held back, at the end of the answer."""
        found = self._read(self._thoughts.flush())
        return merged(found + (self._calls.flush() if self._calls else []))

    def _read(self, parts: Iterable[tuple[str, bool]]) -> list[Piece]:
        found: list[Piece] = []
        for text, thought in parts:
            if thought or self._calls is None:
                found.append(Thought(text) if thought else Text(text))
            else:
                found += self._calls.push(text)
        return merged(found)


class CallReader:
    """Tells calls from the text around them."""

    def __init__(self, form: Format, tools: Tools) -> None:
        self._format = form
        self._tools = tools
        self._held = ""  # what is not yet decided
        self._markup = ""  # tags, and blanks before them, that stand before the held text: they may prove to be text
        self._in_section = False  # only calls may follow, or the end of the section
        self._in_call = False
        self._body: Body | None = None  # of the call; None as long as its form is not known
        self._after_call = False  # and nothing but blanks since
        self.has_called = False

    def push(self, text: str) -> list[Piece]:
        self._held += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    def flush(self) -> list[Piece]:
        pieces: list[Piece] = []
        if self._body is not None and not self._markup:
            pieces += self._body.end(self._held)
        else:
            self._tell(self._markup + self._held, pieces)
        self._held = self._markup = ""
        return pieces

    def _step(self, pieces: list[Piece]) -> bool:
        """Decide on some of what is held; False where that takes more text."""
        if self._in_call:
            return self._call(pieces)
        return self._between(pieces) if self._in_section else self._text(pieces)

    def _text(self, pieces: list[Piece]) -> bool:
        openers = self._format.openers
        found = first_of(self._held, openers)
        at = found[0] if found else len(self._held) - overlap(self._held, openers)
        told = self._held[:at].rstrip()
        self._tell(told, pieces)
        self._held = self._held[len(told) :]
        if found is None:
            return False
        self._open(found[1])
        return True

    def _between(self, pieces: list[Piece]) -> bool:
        """In a section, before a call or after one."""
        opener, (_, closer) = self._format.forms[0].opener, self._format.section or ("", "")
        start = self._held.lstrip()
        if any(tag.startswith(start) and tag != start for tag in (opener, closer)):
            return False
        if start.startswith(opener):
            self._open(opener)
            return True
        self._in_section = False
        if start.startswith(closer) and not self._markup:
            self._held = start[len(closer) :]
            return True
        self._tell(self._markup, pieces)
        self._markup = ""
        return True

    def _open(self, tag: str) -> None:
        """Take in blanks and a tag that follow; a call, or a section, is under way."""
        end = self._held.index(tag) + len(tag)
        self._markup += self._held[:end]
        self._held = self._held[end:]
        self._in_call = tag == self._format.forms[0].opener
        self._in_section = not self._in_call

    def _call(self, pieces: list[Piece]) -> bool:
        if self._body is None and not self._choose():
            return False
        assert self._body is not None
        step = self._body.take(self._held)
        pieces += step.pieces
        self._held = self._held[step.used :]
        if step.used or step.pieces:
            self._markup = ""
        if step.state == "more":
            return False
        self._in_call, self._body = False, None
        self._after_call |= not self._markup
        self.has_called |= not self._markup
        self._in_section = step.state == "done" and bool(self._format.section)
        self._tell(self._markup, pieces)
        self._markup = ""
        return True

    def _choose(self) -> bool:
        """The form of the call, once its first character is there."""
        first = self._held.lstrip()[:1]
        fitting = [form for form in self._format.forms if form.fits(first)] if first else []
        if first:
            self._body = (fitting or self._format.forms)[0].body(self._tools)
        return bool(first)

    def _tell(self, text: str, pieces: list[Piece]) -> None:
        text = text.lstrip() if self._after_call else text
        if text:
            self._after_call = False
            pieces.append(Text(text))
