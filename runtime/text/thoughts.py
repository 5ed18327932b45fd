"""Thoughts of reasoning models: what an answer has between tags, told apart from the answer while both are written."""

from __future__ import annotations

from typing import Literal, NamedTuple

OPEN, CLOSE = "<think>", "</think>"


class Piece(NamedTuple):
    """Some text of an answer, of its thoughts or of what comes after them."""

    text: str
    thought: bool


class ThoughtFilter:
    """Takes an answer in pieces. Thoughts come first or not at all: from `OPEN`, which may stand in the prompt already
    (`opened`), to `CLOSE`. The tags, and the blanks behind them, are no text of either."""

    def __init__(self, opened: bool) -> None:
        self._part: Literal["begin", "thoughts", "answer"] = "thoughts" if opened else "begin"
        self._held = ""  # what may still become a tag
        self._after_tag = opened  # and nothing but blanks since

    def push(self, text: str) -> list[Piece]:
        """What is certain after this text, in order; none of it is empty."""
        self._held += text
        pieces = []
        if self._part == "begin":
            self._begin()
        if self._part == "thoughts":
            thought, tag, rest = self._held.partition(CLOSE)
            keep = 0 if tag else _overlap(thought, CLOSE)
            pieces += self._piece(thought[: len(thought) - keep], True)
            self._held = rest if tag else thought[len(thought) - keep :]
            if tag:
                self._part, self._after_tag = "answer", True
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

    def _piece(self, text: str, thought: bool) -> list[Piece]:
        if self._after_tag:
            text = text.lstrip()
            self._after_tag = not text
        return [Piece(text, thought)] if text else []


def _overlap(text: str, tag: str) -> int:
    """How much of the tag the text may end with."""
    return next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)
