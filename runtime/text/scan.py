"""Looking for tags in a text of which more may come."""

from __future__ import annotations

from collections.abc import Iterable


def first_of(text: str, tags: Iterable[str]) -> tuple[int, str] | None:
    """Where the first of these tags begins, and which one it is."""
    found = [(at, tag) for tag in tags if (at := text.find(tag)) >= 0]
    return min(found, default=None)


def overlap(text: str, tags: Iterable[str]) -> int:
    """How many characters at the end of the text may be the beginning of a tag."""
    return max((_overlap(text, tag) for tag in tags), default=0)


def _overlap(text: str, tag: str) -> int:
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
