"""A request as the scheduler has it: what it asks for, how it goes on, and what there is to tell so far."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from dsv3c.runtime.engine.answer import Times
from dsv3c.runtime.engine.expert_stats import RequestExperts
from dsv3c.runtime.engine.generation import Event, FinishReason, Task
from dsv3c.runtime.engine.strategies import Strategy
from dsv3c.runtime.errors import RuntimeFault, Unforeseen


class Job:
    """`events` are taken from the left. Once it is `done` there come no more; `error` says if it failed.

    `cancelled` may be set by any thread; the rest is the scheduler's.
    """

    def __init__(self, task: Task, strategy: Strategy) -> None:
        self.task = task
        self.strategy = strategy
        self.events: deque[Event] = deque()
        self.error: RuntimeFault | None = None
        self.done = False
        self.cancelled = False
        self.number = -1  # in the order of arrival
        self.times = Times()
        self.deadline: float | None = None
        self.answered = False  # whether the prompt is read and the first token there
        self.served = -1  # the last step that it was in
        self.experts = None if task.experts is None else RequestExperts(*task.experts)

    @property
    def rank(self) -> tuple[int, int]:
        """Lower ones are served first."""
        return -self.task.priority, self.number

    @property
    def ready(self) -> bool:
        return all(lane.ready for lane in self.strategy.lanes)

    @property
    def holds_pages(self) -> bool:
        return any(lane.admitted for lane in self.strategy.lanes)

    def spent(self, seconds: float) -> None:
        """Count the time of a step that it was in."""
        if self.answered:
            self.times.decode += seconds
        else:
            self.times.prompt += seconds

    def fail(self, error: Exception) -> None:
        """Each consumer raises a fault of its own."""
        self.error = error.again() if isinstance(error, RuntimeFault) else Unforeseen.of(error, "a step")

    def end(self, reason: FinishReason) -> None:
        """Tell what came of it."""
        for event in self.strategy.end(reason, self.times):
            if self.experts is not None and event.generation is not None:
                event = replace(event, generation=replace(event.generation, experts=self.experts))
            self.events.append(event)
