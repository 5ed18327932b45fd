"""Thoughts of reasoning models: what an answer has between tags, told apart from the answer while both are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from dsv3c.runtime.text.scan import first_of, overlap

if TYPE_CHECKING:
    from dsv3c.runtime.text.tokenizer import Tokenizer

OPEN, CLOSE = "<think>", "</think>"


class Piece(NamedTuple):
    """Some text of an answer, of its thoughts or of what comes after them."""

    text: str
    thought: bool


def opened_by(prompt: str) -> bool:
    """Whether an answer to the prompt begins within thoughts."""
    return prompt.rstrip().endswith(OPEN)


def hidden_tags(tokenizer: Tokenizer, tags: Iterable[str]) -> Mapping[int, str]:
    """Of these tags the special tokens, which a text leaves out: the text of each id."""
    found = {tokenizer.token_id(tag): tag for tag in tags}
    return {token: tag for token, tag in found.items() if token is not None and not tokenizer.decode([token])}


class ThoughtFilter:
    """Takes an answer in pieces. Thoughts come first or not at all: from `OPEN`, which may stand in the prompt already
    (`opened`), to `CLOSE`. The tags, and the blanks behind them, are no text of either. Thoughts end before one of
    `ends` as well, which is text of the answer."""

    def __init__(self, opened: bool, ends: tuple[str, ...] = ()) -> None:
        self._part: Literal["begin", "thoughts", "answer"] = "thoughts" if opened else "begin"
        self._ends = (CLOSE, *ends)
        self._held = ""  # what may still become a tag
        self._after_tag = opened  # and nothing but blanks since

    def push(self, text: str) -> list[Piece]:
        """What is certain after this text, in order; none of it is empty."""
        self._held += text
        pieces = []
        if self._part == "begin":
            self._begin()
        if self._part == "thoughts":
            pieces += self._think()
        if self._part == "answer":
            pieces += self.flush()
        return pieces

    def flush(self) -> list[Piece]:
        """What was held back, at the end of the text."""
        text, self._held = self._held, ""
        return self._piece(text, self._part == "thoughts")

    def _begin(self) -> None:
        start = self._held.lstrip()
        if start.startswith(OPEN):
            self._part, self._held, self._after_tag = "thoughts", start[len(OPEN) :], True
        elif not OPEN.startswith(start):
            self._part = "answer"

    def _think(self) -> list[Piece]:
        end = first_of(self._held, self._ends)
        at = len(self._held) - overlap(self._held, self._ends) if end is None else end[0]
        pieces = self._piece(self._held[:at], True)
        self._held = self._held[at:]
        if end is not None:
            self._part, self._held = "answer", self._held.removeprefix(CLOSE)
            self._after_tag = end[1] == CLOSE
        return pieces

    def _piece(self, text: str, thought: bool) -> list[Piece]:
        if self._after_tag:
            text = text.lstrip()
            self._after_tag = not text
        return [Piece(text, thought)] if text else []
