"""Speculation as the scheduler sees it: drafts before a step, their worth after it."""

from __future__ import annotations

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
LISTEN = 32  # steps before drafts are looked at again, from which on a drafter follows the text


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

    def __init__(self, session: Session, drafter: Drafter, lengths: Lengths | None = None) -> None:
        self.drafter = drafter
        self.lengths = lengths or Lengths(drafter.most, growth(session.plan))
        self.drafted = Drafted()
        self.fault: RuntimeFault | None = None
        self._session = session
        self._all = Acceptance()
        self._of: WeakKeyDictionary[Lane, Acceptance] = WeakKeyDictionary()
        self._lanes = self._rows = 0
        self._open: list[_Open] = []

    @property
    def rests(self) -> bool:
        """Whether the next step is one without drafts, so that neither `propose` nor `stepped` is called for it."""
        return self.lengths.resting > 0

    @property
    def listens(self) -> bool:
        """Whether the drafter wants to see what comes of the next step."""
        return self.lengths.resting <= LISTEN and self.fault is None

    @property
    def reads_states(self) -> bool:
        return self.drafter.reads_states and self.listens

    def propose(self, drafting: Many[Drafting], lanes: int, room: int) -> None:
        """Give drafts to lanes of the next step, which has `lanes` of them and room for that many more rows."""
        self._open = [_Open(each, each.drafted, each.left) for each in drafting]
        able = [each for each in drafting if each.left > 1]
        count = self.lengths.choose(lanes, [self._acceptance(each.lane).rate for each in able], room)
        if count:
            for each, drafts in zip(able, self._proposed(able, count), strict=True):
                each.lane.drafts = drafts[: min(count, each.left - 1, each.lane.sequence.capacity - each.lane.size)]
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
        self.lengths.measured(self._lanes, self._rows, tokens, drafting_seconds, step_seconds)

    def rested(self, seconds: float) -> None:
        """A step of the rest is done."""
        self.lengths.rested(seconds)

    def saw(self, lane: Lane, start: int, hidden: Floats | None) -> None:
        self._kept(lambda: self.drafter.saw(lane, start, hidden), None)

    def follow(self) -> None:
        self._kept(self.drafter.follow, None)

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
