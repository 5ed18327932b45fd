"""Drafts: tokens that a cheap guess proposes, and one step of the model verifies at once (arXiv 2211.17192).

A drafter proposes, `Lengths` says how many pay, and the strategy of a request verifies. None of it changes a text.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Protocol

from dsv3c.runtime.devices.device import Floats
from dsv3c.runtime.engine.generation import Drafted
from dsv3c.runtime.engine.lanes import Lane
from dsv3c.runtime.engine.sampling import Sampler
from dsv3c.runtime.engine.session import Ints


class Drafting(Protocol):
    """What is drafted for: `strategies.single.Single` is one. left: tokens that the text may still get. room:
    that it has place for behind what it has."""

    @property
    def lane(self) -> Lane: ...

    @property
    def sampler(self) -> Sampler: ...

    @property
    def drafted(self) -> Drafted: ...

    @property
    def left(self) -> int: ...

    @property
    def room(self) -> int: ...


class Drafter(Protocol):
    """Proposes what comes after the pending token of a lane. It does nothing for a text before it is asked.

    name: for reports. most: drafts at a time. hears: steps before a draft of which it wants the model's states, which a
    step gives beside logits and not beside tokens that the device drew; 0 where it goes by the text alone.
    """

    name: str
    most: int
    hears: int

    def cost(self, rows: int) -> float:
        """What a step of its own takes for so many tokens, over one of the model for a single one, as far as that can
        be known unmeasured."""

    def behind(self, lane: Lane) -> int:
        """Tokens of the lane that `propose` would read."""

    def read(self, lanes: Many[Lane], most: int) -> int:
        """Read what these are behind, but for the last token: of each the last `most` tokens at most, with nothing
        before them where that leaves some out. Returns how many it read."""

    def propose(self, drafting: Many[Drafting], count: int) -> list[Ints]:
        """At most `count` tokens for each."""

    def saw(self, lane: Lane, start: int, hidden: Floats | None) -> None:
        """Of a step that it hears: the model has read the lane's tokens from position `start` to the end of its
        sequence. hidden [n, D]: its states after the final norm, of at least these; valid during the call."""

    def forget(self, lane: Lane) -> None:
        """The lane has left its pages."""

    def give_back(self) -> bool:
        """Free pages of the model's pool, since others need them; False where there are none."""
