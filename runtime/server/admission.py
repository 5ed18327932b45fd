"""Who is at work on a model and who waits: a bounded line, first come, first served.

As many sequences are at work as the cache holds in full, so none has to give its pages back for another. All of it is
used by one event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from dsv3c.runtime.server.errors import QueueFull

_MOST_SECONDS = 60  # to try again after


@dataclass(eq=False)
class Place:
    """A request in the line: `turn` waits until it is at work. slots: that it has then."""

    count: int
    admission: Admission
    slots: tuple[int, ...] = ()
    since: float = field(default_factory=time.monotonic)
    prompt_tokens: int = 0
    tokens: int = 0
    _called: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def working(self) -> bool:
        return bool(self.slots)

    async def turn(self) -> None:
        await self._called.wait()

    def call(self, slots: tuple[int, ...]) -> None:
        self.slots = slots
        self._called.set()


class Admission:
    """slots: sequences at work at once. queue: requests that may wait for them."""

    def __init__(self, slots: int, queue: int) -> None:
        self.slots = slots
        self.queue = queue
        self.working: list[Place] = []
        self.waiting: deque[Place] = deque()
        self._free = list(range(slots - 1, -1, -1))
        self._seconds = 1.0  # that a request takes, lately

    @property
    def busy(self) -> int:
        """Slots that are taken."""
        return self.slots - len(self._free)

    def resize(self, slots: int) -> None:
        """While no one is at work."""
        self.slots = slots
        self._free = list(range(slots - 1, -1, -1))

    @contextmanager
    def place(self, count: int) -> Iterator[Place]:
        """A place for as long as the body runs, for a request of `count` sequences, at most `slots`. Raises
        QueueFull."""
        if len(self.waiting) >= self.queue and (self.waiting or count > len(self._free)):
            working, waiting = len(self.working), len(self.waiting)
            raise QueueFull(working=working, waiting=waiting, retry_after=self._retry_after())
        place = Place(count, self)
        self.waiting.append(place)
        self._call()
        try:
            yield place
        finally:
            self._leave(place)

    def _call(self) -> None:
        while self.waiting and self.waiting[0].count <= len(self._free):
            place = self.waiting.popleft()
            self.working.append(place)
            place.since = time.monotonic()
            place.call(tuple(self._free.pop() for _ in range(place.count)))

    def _leave(self, place: Place) -> None:
        if place.working:
            self.working.remove(place)
            self._free += place.slots
            self._free.sort(reverse=True)
            self._seconds += (time.monotonic() - place.since - self._seconds) / 8
        else:
            self.waiting.remove(place)
        self._call()

    def _retry_after(self) -> int:
        """Until the line has moved on by a place."""
        return max(1, min(_MOST_SECONDS, math.ceil(self._seconds * self._waves())))

    def _waves(self) -> float:
        return (len(self.waiting) + 1) / self.slots
