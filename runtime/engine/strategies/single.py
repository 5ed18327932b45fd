"""One text, whose tokens are drawn one by one; drafts are verified as they would have been drawn."""

from __future__ import annotations

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
    the same with any drafts, and so is the distribution (docs/32-drawing.md)."""

    most_lanes = 1

    def __init__(self, task: Task, lane: Lane, index: int = 0) -> None:
        self.lane = lane
        self.sampler = Sampler(task.params, task.vocab_size, task.end_tokens, index)
        self.drafted = Drafted()
        self._answer = Answer(task, index)
        self._logprobs = task.params.logprobs
        self._context = task.context
        if lane.size > self._context:
            lane.slide(SINKS, self._context // 2)

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

    def draws(self, lane: Lane) -> tuple[Draw, ...] | None:
        if self._logprobs is not None:
            return None
        found = [self.sampler.draw(ahead) for ahead in range(1 + lane.drafts.size)]
        return None if any(draw is None for draw in found) else tuple(cast("list[Draw]", found))

    def advance(self, rows: Many[Rows]) -> list[Event]:
        lane, events = self.lane, list[Event]()
        drafts, lane.drafts = lane.drafts, NO_TOKENS
        fed = lane.size  # tokens that the cache holds besides the drafts
        right = kept = 0
        for place, row in enumerate(rows[0]):
            token = self.sampler.token(row) if isinstance(row, int) else self.sampler.sample(row, lane.history)
            as_drafted = place < drafts.size and int(drafts[place]) == token
            right += as_drafted
            event = self._answer.push(token, self._told(row, token))
            events += [] if event is None else [event]
            if self.reason is not None:
                break
            lane.history.append(token)
            kept += as_drafted
            if not as_drafted:
                break
        lane.sequence.truncate(fed + kept)
        if drafts.size:
            before = self.drafted
            self.drafted = Drafted(before.proposed + drafts.size, before.accepted + right, before.steps + 1)
        if lane.size > self._context:
            lane.slide(SINKS, self._context // 2)
        return events

    def end(self, reason: FinishReason, times: Times) -> list[Event]:
        return [self._answer.end(reason, times, self.drafted, self.lane.cached, self.lane.dropped)]

    def _told(self, row: Floats | int, token: int) -> TokenLogprobs | None:
        if self._logprobs is None or isinstance(row, int):
            return None
        return logprobs_of(row, token, self._logprobs)
