"""Drafts from the text itself: what followed when the last tokens stood there before.

Costs no step of any model, and is right where a text repeats its prompt or itself (prompt lookup decoding).
"""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np

from dsv3c.runtime.devices.device import Floats
from dsv3c.runtime.engine.lanes import NO_TOKENS, Lane
from dsv3c.runtime.engine.session import Ints
from dsv3c.runtime.engine.speculation import Drafting

LONGEST, SHORTEST = 4, 2  # tokens that must stand there before; a single one says little


class NgramDrafter:
    """shortest: tokens that must stand there before, at least."""

    name = "n-gram lookup"
    hears = 0

    def __init__(self, most: int = 8, shortest: int = SHORTEST) -> None:
        self.most = most
        self.shortest = shortest

    def cost(self, rows: int) -> float:
        return 0.0

    def behind(self, lane: Lane) -> int:
        return 0

    def read(self, lanes: Many[Lane], most: int) -> int:
        return 0

    def propose(self, drafting: Many[Drafting], count: int) -> list[Ints]:
        return [lookup(each.lane.history.tokens, count, self.shortest) for each in drafting]

    def saw(self, lane: Lane, start: int, hidden: Floats | None) -> None:
        pass

    def forget(self, lane: Lane) -> None:
        pass

    def give_back(self) -> bool:
        return False


def lookup(tokens: Ints, count: int, shortest: int = SHORTEST) -> Ints:
    """At most `count` tokens that followed the latest earlier place of the longest of the last n-grams."""
    for size in range(min(LONGEST, tokens.size - 1), shortest - 1, -1):
        tail = tokens[tokens.size - size :]
        found = np.flatnonzero(tokens[size - 1 : -1] == tail[-1])  # ends of the n-gram, counted from its own size
        for place in range(size - 1):
            found = found[tokens[found + place] == tail[place]]
        if found.size:
            begin = int(found[-1]) + size
            return tokens[begin : begin + count].copy()
    return NO_TOKENS
