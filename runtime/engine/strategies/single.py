"""One text, whose tokens are drawn one by one; drafts are verified as they would have been drawn."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Many
from typing import cast

from dsv3c.runtime.devices.device import Floats
from dsv3c.runtime.engine.answer import Answer, Times, logprobs_of
from dsv3c.runtime.engine.generation import Drafted, Event, FinishReason, Task, TokenLogprobs
from dsv3c.runtime.engine.lanes import NO_TOKENS, Lane
from dsv3c.runtime.engine.sampling import Draw, Sampler
from dsv3c.runtime.engine.strategies import Rows

SINKS = 4  # tokens that stay at the beginning of a window that slides (arXiv 2309.17453, section 3.1)


class Single:
    """Draws with one sampler. A draft is right where it is the token that the sampler draws in its place: the text is
    the same with any drafts, and so is the distribution (docs/32-drawing.md).

    What a grammar leaves no choice about is not drawn: it is appended as it is, and read in the next step together,
    unless something else may forbid it, or logarithms of its probability are wanted (docs/35-structured-output.md).
    """

    most_lanes = 1

    def __init__(self, task: Task, lane: Lane, index: int = 0) -> None:
        self.lane = lane
        constraint = None if task.grammar is None else task.grammar.constraint()
        more = () if constraint is None else (constraint,)
        self.sampler = Sampler(task.params, task.vocab_size, task.end_tokens, index, more)
        self.drafted = Drafted()
        self._answer = Answer(task, index)
        self._logprobs = task.params.logprobs
        self._context = task.context
        self._forcing = None if task.params.forbids else constraint
        self._forced = deque[int]()  # tokens that come next
        self._events: list[Event] = []  # not told yet
        self._look_ahead()
        self._write_forced()
        self._slide()

    @property
    def lanes(self) -> Many[Lane]:
        return (self.lane,)

    @property
    def reason(self) -> FinishReason | None:
        return self._answer.reason

    @property
    def left(self) -> int:
        """Tokens that the text may still get."""
        return self._answer.left

    @property
    def room(self) -> int:
        """Tokens that come behind the text before its window slides."""
        return self._context - self.lane.size

    def draws(self, lane: Lane) -> tuple[Draw, ...] | None:
        if self._logprobs is not None:
            return None
        found = [self.sampler.draw(ahead) for ahead in range(1 + lane.drafts.size)]
        return None if any(draw is None for draw in found) else tuple(cast("list[Draw]", found))

    def advance(self, rows: Many[Rows]) -> list[Event]:
        lane = self.lane
        drafts, lane.drafts = lane.drafts, NO_TOKENS
        fed = lane.size  # tokens that the cache holds besides the drafts
        right = kept = 0
        for place, row in enumerate(rows[0]):
            token = self._next(row)
            as_drafted = place < drafts.size and int(drafts[place]) == token
            right += as_drafted
            if self.reason is not None:
                break
            lane.history.append(token)
            kept += as_drafted
            self._look_ahead()
            if self.reason is not None or not as_drafted:
                break
        lane.sequence.truncate(fed + kept)
        self._write_forced()
        if drafts.size:
            before = self.drafted
            self.drafted = Drafted(before.proposed + drafts.size, before.accepted + right, before.steps + 1)
        self._slide()
        return self._taken_events()

    def end(self, reason: FinishReason, times: Times) -> list[Event]:
        last = self._answer.end(reason, times, self.drafted, self.lane.cached, self.lane.dropped)
        return [*self._taken_events(), last]

    def _slide(self) -> None:
        """Where the window is full, half of it is kept: the last token at least, which is still to be read."""
        if self.room < 0:
            size = max(1, self._context // 2)
            self.lane.slide(min(SINKS, size - 1), size)

    def _next(self, row: Floats | int) -> int:
        """Write the token that comes where a step gave this row."""
        if self._forced:
            token = self._forced.popleft()
            self._wrote(token, self._answer.force(token, self._told(row, token)))
            return token
        token = self.sampler.token(row) if isinstance(row, int) else self.sampler.sample(row, self.lane.history)
        self._wrote(token, self._answer.push(token, self._told(row, token)))
        return token

    def _look_ahead(self) -> None:
        """See what the grammar leaves no choice about: tokens, or the end."""
        if self._forcing is None or self._forced or self.reason is not None:
            return
        self._forced += self._forcing.forced(self.lane.history)
        if not self._forced and self._forcing.finished(self.lane.history):
            self._answer.reason = "stop"

    def _write_forced(self) -> None:
        while self._forced and self._logprobs is None:
            token = self._forced.popleft()
            self._wrote(token, self._answer.force(token))
            if self.reason is not None:
                return
            self.lane.history.append(token)
            self._look_ahead()

    def _wrote(self, token: int, event: Event | None) -> None:
        """The event is told; the last token there is room for may be the last of the grammar, too."""
        self._events += [] if event is None else [event]
        if self.reason == "length" and self._forcing is not None:
            history = self.lane.history.fork()
            history.append(token)
            self._answer.reason = "stop" if self._forcing.finished(history) else "length"

    def _taken_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _told(self, row: Floats | int, token: int) -> TokenLogprobs | None:
        if self._logprobs is None or isinstance(row, int):
            return None
        return logprobs_of(row, token, self._logprobs)
