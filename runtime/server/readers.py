"""Takes the text of a chat's answer apart: what is thought, what is said, which tools are called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from dsv3c.runtime.server.asked import Asked
from dsv3c.runtime.server.deltas import Delta, Text, Thought
from dsv3c.runtime.text.thoughts import CLOSE, OPEN, Piece, ThoughtFilter

if TYPE_CHECKING:
    from dsv3c.runtime.text.tokenizer import Tokenizer


class Reader(Protocol):
    """Of one result. called: whether a tool was."""

    called: bool

    def push(self, text: str, token_id: int | None) -> Iterable[Delta]: ...

    def flush(self) -> Iterable[Delta]: ...


class Plain:
    """Everything is text."""

    called = False

    def __init__(self, index: int) -> None:
        self._index = index

    def push(self, text: str, token_id: int | None) -> Iterator[Delta]:
        if text:
            yield Text(self._index, text)

    def flush(self) -> Iterator[Delta]:
        yield from ()


class Thinking:
    """Thoughts and text. opened: whether the prompt ends in thoughts."""

    called = False

    def __init__(self, index: int, tokenizer: Tokenizer, opened: bool) -> None:
        self._index = index
        self._filter = ThoughtFilter(opened)
        self._hidden = _hidden_tags(tokenizer)

    def push(self, text: str, token_id: int | None) -> Iterator[Delta]:
        yield from self._told(self._filter.push(text + self._hidden.get(-1 if token_id is None else token_id, "")))

    def flush(self) -> Iterator[Delta]:
        yield from self._told(self._filter.flush())

    def _told(self, pieces: Iterable[Piece]) -> Iterator[Delta]:
        for text, thought in pieces:
            yield Thought(self._index, text) if thought else Text(self._index, text)


def reader_for(asked: Asked, index: int, tokenizer: Tokenizer, prompt: str) -> Reader:
    """prompt: what the template made of the messages."""
    if not asked.messages:
        return Plain(index)
    return Thinking(index, tokenizer, prompt.rstrip().endswith(OPEN))


def _hidden_tags(tokenizer: Tokenizer) -> dict[int, str]:
    """Tags that are special tokens, which a text leaves out."""
    found = {tokenizer.token_id(tag): tag for tag in (OPEN, CLOSE)}
    return {token: tag for token, tag in found.items() if token is not None and not tokenizer.decode([token])}
