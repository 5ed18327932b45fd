"""How many drafts pay: predicted from measured times of steps and from how often drafts were right.

A mixture of experts reads more weights for k tokens than for one, E(1 - (1 - n/E)^k) of E experts if each token takes
n of them, so that a draft which is right two times in three can still cost more than it brings. What a step of so many
rows takes is measured and not computed: it holds all of that for the device at hand.

Speculation never costs more than a small share of the time. What it lost so far against plain decoding is kept count
of, and no step is drafted for whose loss, if all drafts were wrong, would bring that above `SHARE` of all decoding, the
next tokens that were asked for among it.
Numbers of drafts are tried from one on, each after the one before it was measured; what the first may take is predicted
from the bytes it reads. What a drafter must read of a text before it drafts is such a cost, too: it reads as many of
the last tokens as there is something left for, which becomes more where drafts have won.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Many

SHARE = 0.01  # of the time of decoding, what drafts that were wrong may cost
FORESIGHT = 128  # tokens that are still to come, of which that share may be spent before
CREDIT = 4  # plain steps: of what was won before, so much counts when drafts begin to be wrong
GAIN = 1.03  # a predicted rate must be that much above the plain one
PLAIN_STEPS = 3  # measured before anything is drafted
KEPT = 9  # times of which the median counts
FIRST_PAUSE, LONGEST_PAUSE = 8, 512  # steps until drafting is tried again where it did not pay
FRESH = 64  # steps with drafts after which a plain one is measured again
REST = 48  # steps without a look at drafts where none may be made, at least
DECAY = 0.95  # of the running acceptance, a draft
PRIOR = 0.7  # acceptance before any was seen
UNMEASURED = 2  # times what bytes say of a drafter's steps, which are small
FIRST_READ = 8  # tokens that a drafter reads at first, before that was measured
READ_GROWTH = 4  # times the most that it has read, at the next time
HALF = 0.5  # of what is left, or was won, that reading may take: a text must be drafted for after it


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

    growth: what a step of so many rows takes over one of a single row, as far as it can be known unmeasured. cost: the
    same of a step of the drafter. hears: steps before a draft that the drafter hears. dearer: whether these may take
    longer than plain ones.
    """

    def __init__(
        self,
        most: int,
        growth: Callable[[int], float] = float,
        cost: Callable[[int], float] = lambda rows: 0.0,
        hears: int = 0,
        dearer: bool = True,
    ) -> None:
        self.most = most
        self._growth = growth
        self._cost = cost
        self._hears = hears
        self._dearer = dearer
        self._heard_for = False  # whether drafts were decided on before the steps that were heard last
        self.lost = 0.0  # seconds against plain decoding; negative: won
        self._debt = 0.0  # of that, what counts
        self.total = 0.0  # seconds of decoding
        self._to_come = 0.0  # seconds of it that follow at least, if no text ends early
        self._steps: dict[int, Running] = {}  # seconds of the model by its rows
        self._drafts: dict[int, Running] = {}  # seconds of proposing by the number of drafts, step after step
        self._tried = 0  # the most drafts so far
        self._looking = Running()  # seconds of a step that asked for drafts and had none
        self._lanes = 1  # of the step that was chosen for last
        self.hearing = False  # whether the drafter hears the step at hand
        self._longer = Running()  # seconds that a step without drafts took longer since it was heard
        self._reads = Running()  # seconds of reading a token of a text
        self._most_read = 0  # tokens at once
        self._pause = FIRST_PAUSE
        self._since = 0  # steps since the last that drafted
        self._stale = 0  # steps since the last plain one that was measured
        self.resting = 0  # steps that follow without a look at drafts, which then cost nothing

    @property
    def gain(self) -> float:
        """What plain decoding would have taken, over what decoding took; 1 where nothing was drafted."""
        return (self.total - self.lost) / self.total if self.total else 1.0

    def choose(self, lanes: int, acceptances: Many[float], room: int, far: int = 0, to_come: int = 0) -> int:
        """For a step of `lanes` lanes of which those with `acceptances` can be drafted for, `far` of them after some of
        their text was read, with room for that many more rows. to_come: tokens that one of these may still have. Where
        it does not pay, the next ones need not ask: `resting`."""
        plain = self._plain(lanes)
        self._to_come = min(to_come, FORESIGHT) * (plain or 0.0)
        self._lanes = lanes
        heard, self.hearing = self.hearing, self.hearing and bool(acceptances)
        if not acceptances or plain is None or self._stale >= FRESH:
            return 0
        decided, self._heard_for, self.hearing = self._heard_for, False, False
        most = min(self.most, room // len(acceptances), 1 + self._tried)
        if most < 1:
            return 0
        drafted = len(acceptances)
        reading = FIRST_READ * far * self._read_time(plain) if far == drafted else 0.0
        hearing = 0.0 if heard else self._hears * max(0.0, self._longer.median)
        needed = reading + HALF * hearing
        counts = [n for n in range(1, most + 1) if self._reading_budget(lanes, drafted, n) >= needed]
        if heard and decided and not self._dearer:  # what was heard for is done
            counts = counts or [1]
        if not counts:
            missing = self._time(lanes, drafted, 1) - plain + needed / HALF - self._left
            return self._rest(min(max(REST, int(missing / (SHARE * plain))), LONGEST_PAUSE))
        best = max(counts, key=lambda count: self._rate(lanes, acceptances, count))
        pays = self._rate(lanes, acceptances, best) > GAIN * lanes / plain
        if not pays and self._since < self._pause:
            return self._rest(self._pause - self._since)
        self.hearing = self._hears > 0
        if self.hearing and not heard:
            self.resting, self._heard_for = self._hears, True
            return 0
        self._pause = FIRST_PAUSE if pays else min(2 * self._pause, LONGEST_PAUSE)
        return best if pays else counts[0]

    def readable(self, lanes: int, drafted: int, count: int, far: int) -> int:
        """Tokens of each of the `far` lanes that a drafter may read before it makes `count` drafts; 0: none."""
        plain = self._plain(lanes)
        if plain is None:
            return 0
        tokens = int(self._reading_budget(lanes, drafted, count) / max(self._read_time(plain) * far, 1e-9))
        return 0 if tokens < FIRST_READ else min(tokens, max(FIRST_READ, READ_GROWTH * self._most_read))

    def read(self, tokens: int, lanes: int, seconds: float) -> None:
        """A drafter has read so many tokens of `lanes` lanes."""
        self._reads.add(seconds / tokens)
        self._most_read = max(self._most_read, tokens // lanes)
        paid = min(seconds, self._winnings)
        self.total += seconds
        self.lost += seconds
        self._debt += seconds - paid

    def rested(self, seconds: float) -> None:
        """A step of the rest is done."""
        self.total += seconds
        self.resting -= 1
        self._since += 1
        if self.hearing and self._dearer:
            self._heard(self._lanes, seconds)

    def measured(self, lanes: int, rows: int, tokens: int, drafting: float, step: float) -> None:
        """A step of `rows` rows took `step` seconds after `drafting` seconds, and gave `tokens` tokens."""
        self.total += drafting + step
        drafted = rows > lanes
        self._since = 0 if drafted else self._since + 1
        self._stale = self._stale + 1 if drafted else 0
        if not drafted and self.hearing and self._dearer:
            step -= self._heard(lanes, step)
        self._steps.setdefault(rows, Running()).add(step)
        if not drafted:
            self._looking.add(drafting)
            self._lose(self._looking.median, lanes)
            return
        count = -(-(rows - lanes) // lanes)
        self._tried = max(self._tried, count)
        self._drafts.setdefault(count, Running()).add(drafting)
        plain = self._plain(lanes)
        if plain is not None:
            self._lose(drafting + step - plain * tokens / lanes, lanes)

    def _heard(self, lanes: int, seconds: float) -> float:
        """A step without drafts was heard; how much longer it took for that."""
        plain = self._plain(lanes)
        if plain is not None:
            self._longer.add(seconds - plain)
        longer = max(0.0, self._longer.median)
        self._lose(longer, lanes)
        return longer

    def _lose(self, seconds: float, lanes: int) -> None:
        plain = self._plain(lanes)
        if plain is not None:
            self.lost += seconds
            self._debt = max(self._debt + seconds, -CREDIT * plain)

    def _rest(self, steps: int) -> int:
        self.resting = steps
        self._stale = FRESH  # times are old when it is over
        return 0

    @property
    def _left(self) -> float:
        """Seconds that drafts may lose now."""
        return SHARE * (self.total + self._to_come) - self._debt

    @property
    def _winnings(self) -> float:
        """Seconds that drafts have won and that reading may take."""
        return HALF * max(0.0, -self.lost)

    def _reading_budget(self, lanes: int, drafted: int, count: int) -> float:
        """Seconds that reading may take before `count` drafts which may all be wrong; negative where those alone would
        cost too much."""
        plain = self._plain(lanes)
        assert plain is not None
        left = self._left - (self._time(lanes, drafted, count) - plain)
        return left if left < 0 else HALF * left + self._winnings

    def _read_time(self, plain: float) -> float:
        """Seconds of reading a token: measured, or by the bytes of a first reading."""
        return self._reads.median if self._reads.count else plain * UNMEASURED * self._cost(FIRST_READ) / FIRST_READ

    def _plain(self, lanes: int) -> float | None:
        times = self._steps.get(lanes)
        return None if times is None or times.count < PLAIN_STEPS else times.median

    def _rate(self, lanes: int, acceptances: Many[float], count: int) -> float:
        """Tokens a second with `count` drafts a lane that can have them."""
        tokens = lanes + sum(rate * (1 - rate**count) / (1 - rate) if rate < 1 else count for rate in acceptances)
        return tokens / self._time(lanes, len(acceptances), count)

    def _time(self, lanes: int, drafting: int, count: int) -> float:
        """Seconds of a step with `count` drafts for `drafting` of the lanes."""
        return self._step_time(lanes + count * drafting) + self._draft_time(lanes, count)

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

    def _draft_time(self, lanes: int, count: int) -> float:
        if not self._drafts:
            return count * UNMEASURED * self._cost(1) * (self._plain(lanes) or 0.0)
        nearest = min(self._drafts, key=lambda number: abs(number - count))
        return self._drafts[nearest].median * max(1.0, count / nearest)
