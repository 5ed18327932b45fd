"""How many drafts pay: predicted from measured times of steps and from how often drafts were right.

A mixture of experts reads more weights for k tokens than for one, E(1 - (1 - n/E)^k) of E experts if each token takes
n of them, so that a draft which is right two times in three can still cost more than it brings. What a step of so many
rows takes is measured and not computed: it holds all of that for the device at hand.

Speculation never costs more than a small share of the time: what it lost so far against plain decoding is kept count
of, and nothing is drafted while that is above `SHARE` of all decoding.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence as Many

SHARE = 0.01  # of the time of decoding, what drafts that were wrong may cost
GAIN = 1.03  # a predicted rate must be that much above the plain one
PLAIN_STEPS = 3  # measured before anything is drafted
KEPT = 9  # times of which the median counts
FIRST_PAUSE, LONGEST_PAUSE = 8, 512  # steps until drafting is tried again where it did not pay
FRESH = 64  # steps after which a plain one is measured again
DECAY = 0.95  # of the running acceptance, a draft
PRIOR = 0.7  # acceptance before any was seen


class Acceptance:
    """Share of drafts that were right, of those whose predecessors were, later ones counting more."""

    def __init__(self) -> None:
        self._right = PRIOR * 4
        self._all = 4.0

    @property
    def rate(self) -> float:
        return self._right / self._all

    def copy(self) -> Acceptance:
        other = Acceptance()
        other._right, other._all = self._right, self._all
        return other

    def add(self, proposed: int, right: int) -> None:
        """The first `right` of the proposed were right; of those behind the first wrong one nothing is known."""
        for place in range(min(proposed, right + 1)):
            self._right = DECAY * self._right + (place < right)
            self._all = DECAY * self._all + 1


class Lengths:
    """Chooses a number of drafts a lane, at most `most`; 0 is plain decoding."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.lost = 0.0  # seconds against plain decoding; negative: won
        self.total = 0.0  # seconds of decoding
        self._steps: dict[int, deque[float]] = {}  # seconds of the model by its rows
        self._drafts: dict[int, deque[float]] = {}  # seconds of proposing by the number of drafts
        self._pause = FIRST_PAUSE
        self._since = 0  # steps since the last that drafted
        self._stale = 0  # steps since the last plain one

    @property
    def gain(self) -> float:
        """What plain decoding would have taken, over what decoding took; 1 where nothing was drafted."""
        return (self.total - self.lost) / self.total if self.total else 1.0

    def choose(self, lanes: int, acceptances: Many[float], room: int) -> int:
        """For a step of `lanes` lanes of which those with `acceptances` can be drafted for, with room for that many
        more rows."""
        most = min(self.most, room // len(acceptances)) if acceptances else 0
        plain = self._plain(lanes)
        if most < 1 or plain is None or self._stale >= FRESH or self.lost > SHARE * self.total + plain:
            return 0
        rates = [self._rate(lanes, acceptances, count) for count in range(1, most + 1)]
        best = max(range(most), key=lambda index: rates[index])
        if rates[best] > GAIN * lanes / plain:
            self._pause = FIRST_PAUSE
            return best + 1
        if self._since < self._pause:
            return 0
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return 1

    def measured(self, lanes: int, rows: int, tokens: int, drafting: float, step: float) -> None:
        """A step of `rows` rows took `step` seconds after `drafting` seconds, and gave `tokens` tokens."""
        self._steps.setdefault(rows, deque(maxlen=KEPT)).append(step)
        self.total += drafting + step
        drafted = rows > lanes
        self._since = 0 if drafted else self._since + 1
        self._stale = self._stale + 1 if drafted else 0
        plain = self._plain(lanes)
        if drafted:
            self._drafts.setdefault(-(-(rows - lanes) // lanes), deque(maxlen=KEPT)).append(drafting)
        if plain is not None and (drafted or drafting > 0):
            self.lost += drafting + step - plain * tokens / lanes if drafted else drafting

    def _plain(self, lanes: int) -> float | None:
        times = self._steps.get(lanes, ())
        return _median(times) if len(times) >= PLAIN_STEPS else None

    def _rate(self, lanes: int, acceptances: Many[float], count: int) -> float:
        """Tokens a second with `count` drafts a lane that can have them."""
        tokens = lanes + sum(rate * (1 - rate**count) / (1 - rate) if rate < 1 else count for rate in acceptances)
        return tokens / (self._step_time(lanes + count * len(acceptances)) + self._draft_time(count))

    def _step_time(self, rows: int) -> float:
        """Measured, between measured ones, or as the nearest: one that was never seen is worth a try."""
        known = {count: _median(times) for count, times in self._steps.items()}
        below = max((count for count in known if count <= rows), default=None)
        above = min((count for count in known if count >= rows), default=None)
        if below is None:
            return math.inf if above is None else known[above]
        if above is None:
            return known[below]
        share = (rows - below) / (above - below) if above > below else 0.0
        return known[below] + share * max(0.0, known[above] - known[below])

    def _draft_time(self, count: int) -> float:
        known = {number: _median(times) for number, times in self._drafts.items()}
        if not known:
            return 0.0
        nearest = min(known, key=lambda number: abs(number - count))
        return known[nearest] * (count / nearest if count > nearest else 1)


def _median(times: Many[float] | deque[float]) -> float:
    ordered = sorted(times)
    return ordered[len(ordered) // 2]
