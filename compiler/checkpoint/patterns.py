"""Regular expressions out of files that nobody vouches for, matched in a time that grows with pattern times text.

Of Python's are followed: characters, classes and `.`, each with `*`, `+`, `?` or `{1,9}` behind it, groups, with `?`
alone, choices, `^` and `$`. A part of a pattern is a function from places in a text to all those that may lie behind
what it matches: none is come to twice, where a search that goes back tries every way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce

_MAX_PATTERN = 1000  # characters
_MAX_DEPTH = 20  # groups within one another
_ONE = re.compile(r"\\[dDsSwW]|\\[^\w\s]|\[\^?(?:\\[dDsSwW]|\\[^\w\s]|[^\[\]\\])+\]|[^\\\[\](){}|^$*+?]", re.DOTALL)
_TIMES = re.compile(r"\{(\d{1,2})(,?)(\d{0,2})\}")

Places = frozenset[int]
Ends = Callable[[str, Places], Places]


@lru_cache(maxsize=1024)
def follower(pattern: str) -> Callable[[str], bool] | None:
    """Whether re.match finds the pattern in a text; None for one that is not followed."""
    if len(pattern) > _MAX_PATTERN:
        return None
    reading = _Reading(pattern)
    try:
        ends = reading.choice(_MAX_DEPTH)
    except _Beyond:
        return None
    if reading.at < len(pattern):
        return None
    return lambda text: bool(ends(text, frozenset((0,))))


class _Beyond(Exception):
    """The pattern is not of the kind that is followed."""


class _Reading:
    """`at` is how far the pattern is read."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0

    def choice(self, depth: int) -> Ends:
        rows = [self._row(depth)]
        while self._take("|"):
            rows.append(self._row(depth))
        return lambda text, places: frozenset[int]().union(*(ends(text, places) for ends in rows))

    def _row(self, depth: int) -> Ends:
        items: list[Ends] = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            items.append(self._item(depth))
        return lambda text, places: _in_turn(items, text, places)

    def _item(self, depth: int) -> Ends:
        if self._take("^"):
            return lambda text, places: places & {0}
        if self._take("$"):
            return lambda text, places: places & {len(text)}
        if self._take("("):
            return self._group(depth)
        return self._repeated(self._one())

    def _group(self, depth: int) -> Ends:
        self._take("?:")
        if depth == 0:
            raise _Beyond
        inner = self.choice(depth - 1)
        if not self._take(")"):
            raise _Beyond
        return self._optional(inner) if self._take("?") else inner

    def _repeated(self, is_one: Callable[[str], object]) -> Ends:
        def once(text: str, places: Places) -> Places:
            return frozenset(at + 1 for at in places if at < len(text) and is_one(text[at]))

        def often(text: str, places: Places) -> Places:
            found = set(places)
            for at in range(len(text)):
                if at in found and is_one(text[at]):
                    found.add(at + 1)
            return frozenset(found)

        if self._take("?"):
            return self._optional(once)
        if self._take("*"):
            self._take("?")  # the least first: what is found is the same
            return often
        if self._take("+"):
            self._take("?")
            return lambda text, places: often(text, once(text, places))
        times = _TIMES.match(self.pattern, self.at)
        return once if times is None else self._counted(times, once, often)

    def _counted(self, times: re.Match[str], once: Ends, often: Ends) -> Ends:
        self.at = times.end()
        self._take("?")
        least, most = int(times[1]), int(times[3] or times[1])
        if most < least or (times[3] and not times[2]):
            raise _Beyond
        behind = [often] if times[2] and not times[3] else [self._optional(once)] * (most - least)
        return lambda text, places: _in_turn([once] * least + behind, text, places)

    def _optional(self, ends: Ends) -> Ends:
        self._take("?")
        return lambda text, places: places | ends(text, places)

    def _one(self) -> Callable[[str], object]:
        """Whether it is a character that the next part of the pattern stands for."""
        found = _ONE.match(self.pattern, self.at)
        if found is None:
            raise _Beyond
        self.at = found.end()
        try:
            return re.compile(found[0]).fullmatch
        except re.error as error:  # such as a range that is reversed
            raise _Beyond from error

    def _take(self, text: str) -> bool:
        if not self.pattern.startswith(text, self.at):
            return False
        self.at += len(text)
        return True


def _in_turn(items: Sequence[Ends], text: str, places: Places) -> Places:
    return reduce(lambda found, ends: ends(text, found), items, places)
