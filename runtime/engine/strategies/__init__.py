"""How a request goes on: a strategy has lanes, takes the rows of logits that a step gave them, and says what came.

All lanes of a strategy are in the same step. It knows nothing of devices, pages or other requests.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Protocol

from dsv3c.runtime.devices.device import Floats
from dsv3c.runtime.engine.answer import Times
from dsv3c.runtime.engine.generation import Event, FinishReason
from dsv3c.runtime.engine.lanes import Lane
from dsv3c.runtime.engine.sampling import Draw

Rows = Floats | list[int]  # [r, V] of the last r tokens of a lane, or what a device drew of each


class Strategy(Protocol):
    """Implemented by `Single` and `Beams`."""

    @property
    def lanes(self) -> Many[Lane]:
        """The lanes that go on, at least one; fewer than `most_lanes` before the prompt is read."""

    @property
    def most_lanes(self) -> int: ...

    def draws(self, lane: Lane) -> tuple[Draw, ...] | None:
        """How a device draws a token of the last of the pending tokens and of each draft; None: logits are needed."""

    def advance(self, rows: Many[Rows]) -> list[Event]:
        """Take what a step gave each lane: 1 + drafts rows. Raises LogitsNotFinite."""

    @property
    def reason(self) -> FinishReason | None:
        """Why there is nothing more to do."""

    def end(self, reason: FinishReason, times: Times) -> list[Event]:
        """The last events, each with a generation; lanes are closed by the caller."""
