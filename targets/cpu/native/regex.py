"""The regular expressions of pre-tokenisers as steps for split.c: a part of the language that needs no loops.

Supported: characters, classes (`\\p{L}`, `\\s`, `[^\\r\\n\\p{N}]`), alternatives, groups `(?:…)` and `(?i:…)`, greedy
and possessive repetition of one character, `?` of a group, lookahead for one character, `$`. What a class contains is
asked of the package `tokenizers` itself, so both agree on every character, whatever version of Unicode it has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import chain

from tokenizers import Regex, pre_tokenizers

RUN, ATOMIC, SPLIT, JUMP, AHEAD, NOT_AHEAD, LINE_END, MATCH = range(8)
UNBOUNDED = 0xFFFFFFFF
STAGES_LIMIT = 64  # as tokenizer.h has it
STEPS_LIMIT = 256
CLASSES_LIMIT = 64  # to ask for the characters of one takes a moment; known tokenizers have 20
PATTERN_LIMIT = 4096
DEPTH_LIMIT = 32

Ranges = tuple[tuple[int, int], ...]
Step = tuple[int, int, int, int]

_REPETITIONS = {"?": (0, 1), "*": (0, UNBOUNDED), "+": (1, UNBOUNDED)}
# Planes without assigned characters, and those for private use, are uniform: one character stands for each.
_PROBED = (range(0xD800), range(0xE000, 0x40000), range(0xE0000, 0xF0000))
_UNIFORM = (range(0x40000, 0xE0000), range(0xF0000, 0x110000))


class Unsupported(Exception):
    """What a tokenizer.json asks for that the native tokenizer does not have."""


@dataclass
class Program:
    """Stages of steps over classes. A step's class is an index into `classes`; its targets count from its stage."""

    classes: list[Ranges] = field(default_factory=list)
    stages: list[list[Step]] = field(default_factory=list)

    def add(self, pattern: str) -> None:
        """Compile a pattern as the next stage. Raises Unsupported."""
        if len(self.stages) == STAGES_LIMIT:
            raise Unsupported(f"more than {STAGES_LIMIT} patterns")
        if len(pattern) > PATTERN_LIMIT:
            raise Unsupported(f"a pattern of {len(pattern)} characters")
        steps = [*_Parser(pattern, self.classes).parse(), (MATCH, 0, 0, 0)]
        if len(steps) > STEPS_LIMIT:
            raise Unsupported(f"a pattern of {len(steps)} steps")
        if _matches_nothing(steps):
            raise Unsupported(f"the pattern {pattern!r}, which matches the empty text")
        self.stages.append(steps)


class _Parser:
    def __init__(self, pattern: str, classes: list[Ranges]) -> None:
        self._pattern, self._at, self._depth, self._classes = pattern, 0, 0, classes

    def parse(self) -> list[Step]:
        steps = self._alternatives(False)
        if self._at < len(self._pattern):
            raise self._unsupported()
        return steps

    def _alternatives(self, ignore_case: bool) -> list[Step]:
        found = [self._sequence(ignore_case)]
        while self._take("|"):
            found.append(self._sequence(ignore_case))
        steps = found.pop()
        while found:
            steps = _either(found.pop(), steps)
        return steps

    def _sequence(self, ignore_case: bool) -> list[Step]:
        steps: list[Step] = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            steps = _joined(steps, self._item(ignore_case))
        return steps

    def _item(self, ignore_case: bool) -> list[Step]:
        if self._take("$"):
            return [(LINE_END, 0, 0, 0)]
        for opening, op in (("(?!", NOT_AHEAD), ("(?=", AHEAD)):
            if self._take(opening):
                step = (op, self._class(ignore_case), 0, 0)
                self._expect(")")
                return [step]
        for opening, ignores in (("(?i:", True), ("(?:", ignore_case), ("(", ignore_case)):
            if self._take(opening):
                return self._group(ignores)
        number = self._class(ignore_case)
        least, most, possessive = self._repetition()
        return [(ATOMIC if possessive else RUN, number, least, most)]

    def _group(self, ignore_case: bool) -> list[Step]:
        self._depth += 1
        if self._pattern[self._at : self._at + 1] == "?" or self._depth > DEPTH_LIMIT:
            raise self._unsupported()
        steps = self._alternatives(ignore_case)
        self._expect(")")
        self._depth -= 1
        least, most, possessive = self._repetition()
        if (least, most) == (1, 1):
            return steps
        if (least, most) != (0, 1) or possessive:
            raise self._unsupported()
        return _either(steps, [])

    def _repetition(self) -> tuple[int, int, bool]:
        least, most = 1, 1
        sign = self._pattern[self._at : self._at + 1]
        if sign in _REPETITIONS:
            self._at += 1
            least, most = _REPETITIONS[sign]
            if self._take("+"):
                return least, most, True
        elif sign == "{":
            least, most = self._counts()
        if self._pattern[self._at : self._at + 1] in ("?", "*", "+", "{"):  # lazy, or a repetition of a repetition
            raise self._unsupported()
        return least, most, False

    def _counts(self) -> tuple[int, int]:
        end = self._pattern.find("}", self._at)
        low, comma, high = self._pattern[self._at + 1 : end].partition(",")
        # Counts are ASCII digits, and fit into a word of a step.
        if end < 0 or not re.fullmatch(r"[0-9]{1,9}", low) or not re.fullmatch(r"[0-9]{0,9}", high):
            raise self._unsupported()
        self._at = end + 1
        most = int(low) if not comma else int(high) if high else UNBOUNDED
        if most < int(low):
            raise self._unsupported()
        return int(low), most

    def _class(self, ignore_case: bool) -> int:
        """The number of the class of the one character that the pattern asks for here."""
        text = self._pattern[self._at : self._class_end()]
        if text in (".", "^") or (text.startswith("\\") and text[1:2].isalnum() and text[1] not in "pPsSdDrntf"):
            raise self._unsupported()
        self._at += len(text)
        plain = text[1:] if len(text) == 2 and text[0] == "\\" and not text[1].isalnum() else text
        try:
            found = _of_character(plain, ignore_case) if len(plain) == 1 else _of_class(text, ignore_case)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # not an expression; a panic of the Rust side is no Exception
            raise self._unsupported() from error
        if found not in self._classes:
            if len(self._classes) == CLASSES_LIMIT:
                raise Unsupported(f"more than {CLASSES_LIMIT} classes of characters")
            self._classes.append(found)
        return self._classes.index(found)

    def _class_end(self) -> int:
        rest = self._pattern[self._at :]
        if not rest or rest[0] in "?*+{)|":
            raise self._unsupported()
        if rest[0] == "[":
            return self._bracket_end()
        if rest[0] != "\\":
            return self._at + 1
        length = rest.find("}") + 1 if rest[1:3] in ("p{", "P{") else 2
        if not 2 <= length <= len(rest):
            raise self._unsupported()
        return self._at + length

    def _bracket_end(self) -> int:
        depth, at = 0, self._at
        while at < len(self._pattern):
            sign = self._pattern[at]
            depth += (sign == "[") - (sign == "]")
            at += 2 if sign == "\\" else 1
            if depth == 0:
                return at
        raise self._unsupported()

    def _take(self, text: str) -> bool:
        found = self._pattern.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise self._unsupported()

    def _unsupported(self) -> Unsupported:
        return Unsupported(f"the pattern {self._pattern!r}, from character {self._at}")


def _shifted(steps: list[Step], by: int) -> list[Step]:
    moved = {SPLIT: (by, by), JUMP: (by, 0)}
    return [(op, a + moved.get(op, (0, 0))[0], b + moved.get(op, (0, 0))[1], c) for op, a, b, c in steps]


def _joined(first: list[Step], second: list[Step]) -> list[Step]:
    return first + _shifted(second, len(first))


def _either(first: list[Step], second: list[Step]) -> list[Step]:
    """The first; if what follows fails, the second."""
    split = (SPLIT, 1, len(first) + 2, 0)
    jump = (JUMP, len(first) + 2 + len(second), 0, 0)
    return [split, *_shifted(first, 1), jump, *_shifted(second, len(first) + 2)]


def _matches_nothing(steps: list[Step]) -> bool:
    """Whether the end can be reached without taking a character."""
    reached = {0}
    for number, (op, a, b, _) in enumerate(steps):
        if number not in reached:
            continue
        if op == MATCH:
            return True
        if op in (SPLIT, JUMP):
            reached |= {a, b} if op == SPLIT else {a}
        elif op not in (RUN, ATOMIC) or b == 0:
            reached.add(number + 1)
    return False


@cache
def _of_character(character: str, ignore_case: bool) -> Ranges:
    same = _same_letters().get(character.casefold(), set()) if ignore_case else set()
    return tuple((c, c) for c in sorted({ord(character), *same}))


@cache
def _same_letters() -> Mapping[str, set[int]]:
    """Characters by what they are when case is ignored."""
    found: dict[str, set[int]] = {}
    for point in chain(*_PROBED):
        found.setdefault(chr(point).casefold(), set()).add(point)
    return found


@cache
def _of_class(text: str, ignore_case: bool) -> Ranges:
    """The characters that `tokenizers` matches with a class."""
    probe = "".join(map(chr, [*chain(*_PROBED), *(uniform[0] for uniform in _UNIFORM)]))
    pattern = Regex(f"(?i:{text})+" if ignore_case else f"{text}+")
    left = pre_tokenizers.Split(pattern, "removed").pre_tokenize_str(probe)
    return tuple(_merged(_found([span for _, span in left], len(probe))))


def _found(left: Iterable[tuple[int, int]], end: int) -> Iterator[tuple[int, int]]:
    """Ranges of characters of the probe outside of the spans that were left."""
    begin = 0
    for low, high in [*left, (end, end)]:
        yield from _ranges(begin, low)
        begin = high


def _ranges(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Ranges of characters at [begin, end) of the probe."""
    first = 0
    for points in _PROBED:
        low, high = max(begin, first), min(end, first + len(points))
        if low < high:
            yield points[low - first], points[high - first - 1]
        first += len(points)
    for number, points in enumerate(_UNIFORM):
        if begin <= first + number < end:
            yield points[0], points[-1]


def _merged(ranges: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    current: tuple[int, int] | None = None
    for low, high in sorted(ranges):
        if current is not None and low == current[1] + 1:
            current = (current[0], high)
            continue
        if current is not None:
            yield current
        current = (low, high)
    if current is not None:
        yield current
