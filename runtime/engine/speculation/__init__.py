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
    """What is drafted for: `strategies.single.Single` is one. left: tokens that the text may still get."""

    @property
    def lane(self) -> Lane: ...

    @property
    def sampler(self) -> Sampler: ...

    @property
    def drafted(self) -> Drafted: ...

    @property
    def left(self) -> int: ...


class Drafter(Protocol):
    """Proposes what comes after the pending token of a lane.

    name: for reports. most: drafts at a time. reads_states: whether it goes by the model's states, which a step gives
    beside logits and not beside tokens that the device drew.
    """

    name: str
    reads_states: bool
    most: int

    def propose(self, drafting: Many[Drafting], count: int) -> list[Ints]:
        """At most `count` tokens for each."""

    def saw(self, lane: Lane, start: int, hidden: Floats | None) -> None:
        """The model has read the lane's tokens from position `start` to the end of its sequence. hidden [n, D]: its
        states after the final norm, of at least these; valid during the call."""

    def follow(self) -> None:
        """All of a step was seen, its outputs are no longer needed: steps of the model's own may be made."""

    def forget(self, lane: Lane) -> None:
        """The lane has left its pages."""

    def give_back(self) -> bool:
        """Free pages of the model's pool, since others need them; False where there are none."""
