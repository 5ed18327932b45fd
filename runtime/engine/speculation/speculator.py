"""Speculation as the scheduler sees it: drafts before a step, their worth after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from dsv3c.runtime.devices.device import Floats
from dsv3c.runtime.engine.generation import Drafted
from dsv3c.runtime.engine.lanes import NO_TOKENS, Lane
from dsv3c.runtime.engine.session import Ints, Session
from dsv3c.runtime.engine.speculation import Drafter, Drafting
from dsv3c.runtime.engine.speculation.growth import growth
from dsv3c.runtime.engine.speculation.lengths import Acceptance, Lengths
from dsv3c.runtime.errors import OutOfPages, RuntimeFault

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Open:
    """A lane in a step: what it was before."""

    drafting: Drafting
    drafted: Drafted
    left: int


class Speculator:
    """Lets `drafter` propose as many drafts as pay. Used by one thread at a time.

    drafted: of all requests. fault: what ended drafting.
    """

    def __init__(self, session: Session, drafter: Drafter) -> None:
        self.drafter = drafter
        self.lengths = Lengths(drafter.most, growth(session.plan), drafter.cost, drafter.hears, session.can_draw)
        self.drafted = Drafted()
        self.fault: RuntimeFault | None = None
        self._session = session
        self._all = Acceptance()
        self._of: WeakKeyDictionary[Lane, Acceptance] = WeakKeyDictionary()
        self._lanes = self._rows = 0
        self._reading = 0.0  # seconds, before the drafts of the step at hand
        self._open: list[_Open] = []

    @property
    def rests(self) -> bool:
        """Whether the next step is one without drafts, so that neither `propose` nor `stepped` is called for it."""
        return self.lengths.resting > 0

    @property
    def hears(self) -> bool:
        """Whether the drafter wants to see the model's states of the step at hand."""
        return self.lengths.hearing and self.fault is None

    def propose(self, drafting: Many[Drafting], lanes: int, room: int) -> None:
        """Give drafts to lanes of the next step, which has `lanes` of them and room for that many more rows."""
        self._open = [_Open(each, each.drafted, each.left) for each in drafting]
        self._reading = 0.0
        able = [each for each in drafting if each.left > 1]
        far = [each for each in able if self.drafter.behind(each.lane) > self.drafter.most + 1]
        rates = [self._acceptance(each.lane).rate for each in able]
        to_come = max((each.left for each in able), default=0)
        count = self.lengths.choose(lanes, rates, room, len(far), to_come)
        if count and far and not self._read(far, self.lengths.readable(lanes, len(able), count, len(far))):
            able = [each for each in able if each not in far]
        if count and able:
            for each, drafts in zip(able, self._proposed(able, count), strict=True):
                each.lane.drafts = drafts[: min(count, each.left - 1, each.room)]
                self._reserve(each.lane)
        self._lanes, self._rows = lanes, lanes + sum(each.lane.drafts.size for each in drafting)

    def stepped(self, drafting_seconds: float, step_seconds: float) -> None:
        """The step that was proposed for is done."""
        tokens = self._lanes - len(self._open)
        for each in self._open:
            now, before = each.drafting.drafted, each.drafted
            proposed, right = now.proposed - before.proposed, now.accepted - before.accepted
            tokens += each.left - each.drafting.left
            if proposed:
                self._acceptance(each.drafting.lane).add(proposed, right)
                self._all.add(proposed, right)
                total = self.drafted
                self.drafted = Drafted(total.proposed + proposed, total.accepted + right, total.steps + 1)
        self.lengths.measured(self._lanes, self._rows, tokens, drafting_seconds - self._reading, step_seconds)

    def rested(self, seconds: float) -> None:
        """A step of the rest is done."""
        self.lengths.rested(seconds)

    def saw(self, lane: Lane, start: int, hidden: Floats | None) -> None:
        self._kept(lambda: self.drafter.saw(lane, start, hidden), None)

    def forget(self, lane: Lane) -> None:
        self.drafter.forget(lane)

    def give_back(self) -> bool:
        """Free pages that drafting took; False where there are none."""
        return self.drafter.give_back()

    def report(self) -> dict[str, Any]:
        """Who drafts, how much of it was right, and what it gained over plain decoding as far as that was measured."""
        total, lengths = self.drafted, self.lengths
        return {
            "drafter": self.drafter.name,
            "proposed": total.proposed,
            "accepted": total.accepted,
            "acceptance": round(total.acceptance, 3),
            "drafts_a_step": round(total.proposed / total.steps, 2) if total.steps else 0.0,
            "gain": round(lengths.gain, 3),
            "fault": None if self.fault is None else str(self.fault),
        }

    def _read(self, far: Many[Drafting], most: int) -> bool:
        """Let the drafter read at most so many tokens of each; False if these are none."""
        if not most:
            return False
        began = time.perf_counter()
        tokens = self._kept(lambda: self.drafter.read([each.lane for each in far], most), 0)
        self._reading = time.perf_counter() - began
        if tokens:
            self.lengths.read(tokens, len(far), self._reading)
        return True

    def _proposed(self, drafting: Many[Drafting], count: int) -> Many[Ints]:
        return self._kept(lambda: self.drafter.propose(drafting, count), [NO_TOKENS for _ in drafting])

    def _kept(self, call: Callable[[], Result], instead: Result) -> Result:
        """A drafter that fails is left alone from then on: texts do without it."""
        if self.fault is not None:
            return instead
        try:
            return call()
        except RuntimeFault as fault:
            self.fault = fault
            return instead

    def _reserve(self, lane: Lane) -> None:
        """Drafts take free pages only; without them they are left out."""
        if not lane.drafts.size:
            return
        try:
            self._session.reserve(lane.sequence, lane.size + lane.drafts.size)
        except OutOfPages:
            lane.drafts = NO_TOKENS

    def _acceptance(self, lane: Lane) -> Acceptance:
        """Of this lane; of all for one that is new."""
        return self._of.setdefault(lane, self._all.copy())
