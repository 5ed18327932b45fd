"""Takes the text of an answer apart: what is thought, what is said, which tools are called."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from typing import Protocol

from dsv3c.runtime.server.deltas import CallArguments, CallBegun, Text, Thought
from dsv3c.runtime.text.dialects import pieces
from dsv3c.runtime.text.dialects.dialect import Dialect
from dsv3c.runtime.text.dialects.forms import Tools

Part = Text | Thought | CallBegun | CallArguments


class Reader(Protocol):
    """Of one result. called: whether a tool was."""

    @property
    def called(self) -> bool: ...

    def push(self, text: str) -> Iterable[Part]: ...

    def flush(self) -> Iterable[Part]: ...


class Plain:
    """Everything is text."""

    called = False

    def __init__(self, index: int) -> None:
        self._index = index

    def push(self, text: str) -> Iterator[Part]:
        if text:
            yield Text(self._index, text)

    def flush(self) -> Iterator[Part]:
        yield from ()


class Chat:
    """As the model's dialect has it, of texts that it decodes. opened: whether the answer begins within thoughts.
    opening: the beginning of it that stands in the prompt already."""

    def __init__(self, index: int, dialect: Dialect, tools: Tools, opened: bool, opening: str) -> None:
        self._index = index
        self._reader = dialect.reader(opened, tools)
        self._calls = 0
        self._early = self._reader.push(opening) if opening else []

    @property
    def called(self) -> bool:
        return self._calls > 0

    def push(self, text: str) -> Iterator[Part]:
        early, self._early = self._early, []
        yield from self._told([*early, *self._reader.push(text)])

    def flush(self) -> Iterator[Part]:
        early, self._early = self._early, []
        yield from self._told([*early, *self._reader.flush()])

    def _told(self, found: Iterable[pieces.Piece]) -> Iterator[Part]:
        for piece in found:
            if isinstance(piece, pieces.CallBegun):
                self._calls += 1
                yield CallBegun(self._index, self._calls - 1, f"call_{secrets.token_hex(12)}", piece.name)
            elif isinstance(piece, pieces.CallArguments):
                yield CallArguments(self._index, self._calls - 1, piece.text)
            else:
                yield (Thought if isinstance(piece, pieces.Thought) else Text)(self._index, piece.text)
