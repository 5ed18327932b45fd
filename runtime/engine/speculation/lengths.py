"""How many drafts pay: predicted from measured times of steps and from how often drafts were right.

A mixture of experts reads more weights for k tokens than for one, E(1 - (1 - n/E)^k) of E experts if each token takes
n of them, so that a draft which is right two times in three can still cost more than it brings. What a step of so many
rows takes is measured and not computed: it holds all of that for the device at hand.

Speculation never costs more than a small share of the time. What it lost so far against plain decoding is kept count
of, and no step is drafted for whose loss, if all drafts were wrong, would bring that above `SHARE` of all decoding.
Numbers of drafts are tried from one on, each after the one before it was measured; what the first may take is predicted
from the bytes it reads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Many

SHARE = 0.01  # of the time of decoding, what drafts that were wrong may cost
CREDIT = 4  # plain steps: of what was won before, so much counts when drafts begin to be wrong
GAIN = 1.03  # a predicted rate must be that much above the plain one
PLAIN_STEPS = 3  # measured before anything is drafted
KEPT = 9  # times of which the median counts
FIRST_PAUSE, LONGEST_PAUSE = 8, 512  # steps until drafting is tried again where it did not pay
FRESH = 64  # steps after which a plain one is measured again
REST = 48  # steps without a look at drafts where none may be made
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


class Running:
    """The median of the last times."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=KEPT)
        self.count = 0
        self.median = 0.0

    def add(self, seconds: float) -> None:
        self._times.append(seconds)
        self.count += 1
        self.median = sorted(self._times)[len(self._times) // 2]


class Lengths:
    """Chooses a number of drafts a lane, at most `most`; 0 is plain decoding.

    growth: what a step of so many rows takes over one of a single row, as far as it can be known unmeasured.
    """

    def __init__(self, most: int, growth: Callable[[int], float] = float) -> None:
        self.most = most
        self._growth = growth
        self.lost = 0.0  # seconds against plain decoding; negative: won
        self._debt = 0.0  # of that, what counts
        self.total = 0.0  # seconds of decoding
        self._steps: dict[int, Running] = {}  # seconds of the model by its rows
        self._drafts: dict[int, Running] = {}  # seconds of proposing by the number of drafts, step after step
        self._tried = 0  # the most drafts so far
        self._looking = Running()  # seconds of a step that asked for drafts and had none
        self._pause = FIRST_PAUSE
        self._since = 0  # steps since the last that drafted
        self._stale = 0  # steps since the last plain one that was measured
        self.resting = 0  # steps that follow without a look at drafts, which then cost nothing

    @property
    def gain(self) -> float:
        """What plain decoding would have taken, over what decoding took; 1 where nothing was drafted."""
        return (self.total - self.lost) / self.total if self.total else 1.0

    def choose(self, lanes: int, acceptances: Many[float], room: int) -> int:
        """For a step of `lanes` lanes of which those with `acceptances` can be drafted for, with room for that many
        more rows. Where it does not pay, the next ones need not ask: `resting`."""
        plain = self._plain(lanes)
        if not acceptances or plain is None or self._stale >= FRESH:
            return 0
        left = SHARE * self.total - self._debt
        most = min(self.most, room // len(acceptances), 1 + self._tried)
        if most < 1:
            return 0
        counts = [n for n in range(1, most + 1) if self._time(lanes, len(acceptances), n) - plain <= left]
        if not counts:
            return self._rest(REST)
        best = max(counts, key=lambda count: self._rate(lanes, acceptances, count))
        if self._rate(lanes, acceptances, best) > GAIN * lanes / plain:
            self._pause = FIRST_PAUSE
            return best
        if self._since < self._pause:
            return self._rest(self._pause - self._since)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return counts[0]

    def rested(self, seconds: float) -> None:
        """A step of the rest is done."""
        self.total += seconds
        self.resting -= 1
        self._since += 1

    def measured(self, lanes: int, rows: int, tokens: int, drafting: float, step: float) -> None:
        """A step of `rows` rows took `step` seconds after `drafting` seconds, and gave `tokens` tokens."""
        self._steps.setdefault(rows, Running()).add(step)
        self.total += drafting + step
        drafted = rows > lanes
        if not drafted:
            self._looking.add(drafting)
        follows, self._since = self._since == 0, 0 if drafted else self._since + 1
        self._stale = self._stale + 1 if drafted else 0
        plain = self._plain(lanes)
        if drafted:
            count = -(-(rows - lanes) // lanes)
            self._tried = max(self._tried, count)
            if follows:  # the first one catches up with the text
                self._drafts.setdefault(count, Running()).add(drafting)
        if plain is not None:
            lost = drafting + step - plain * tokens / lanes if drafted else self._looking.median
            self.lost += lost
            self._debt = max(self._debt + lost, -CREDIT * plain)

    def _rest(self, steps: int) -> int:
        self.resting = steps
        self._stale = FRESH  # times are old when it is over
        return 0

    def _plain(self, lanes: int) -> float | None:
        times = self._steps.get(lanes)
        return None if times is None or times.count < PLAIN_STEPS else times.median

    def _rate(self, lanes: int, acceptances: Many[float], count: int) -> float:
        """Tokens a second with `count` drafts a lane that can have them."""
        tokens = lanes + sum(rate * (1 - rate**count) / (1 - rate) if rate < 1 else count for rate in acceptances)
        return tokens / self._time(lanes, len(acceptances), count)

    def _time(self, lanes: int, drafting: int, count: int) -> float:
        """Seconds of a step with `count` drafts for `drafting` of the lanes."""
        return self._step_time(lanes + count * drafting) + self._draft_time(count)

    def _step_time(self, rows: int) -> float:
        """Measured, or on the line through the two nearest that were, or grown from a single one."""
        known = self._steps
        if rows in known:
            return known[rows].median
        if len(known) == 1:
            (single,) = known
            return known[single].median * max(1.0, self._growth(rows) / self._growth(single))
        near, far = sorted(known, key=lambda count: (abs(count - rows), count))[:2]
        slope = max(0.0, (known[far].median - known[near].median) / (far - near))
        return known[near].median + slope * (rows - near)

    def _draft_time(self, count: int) -> float:
        if not self._drafts:
            return 0.0
        nearest = min(self._drafts, key=lambda number: abs(number - count))
        return self._drafts[nearest].median * max(1.0, count / nearest)
