"""Many threads and coroutines use one scheduler: whoever waits for an event makes the next step, for all.

There is no thread of its own: a lone caller pays nothing for the others, and a forked child can go on. Steps take turns
(`Turns`); one who gets the turn and finds that his event has come meanwhile leaves it to the next.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING, Any

from dsv3c.runtime.engine.generation import Event, Generation, Task
from dsv3c.runtime.engine.history import History
from dsv3c.runtime.engine.jobs import Job
from dsv3c.runtime.engine.lanes import Lane
from dsv3c.runtime.engine.prefix_cache import PrefixCache
from dsv3c.runtime.engine.scheduler import Scheduler
from dsv3c.runtime.engine.session import Session
from dsv3c.runtime.engine.speculation.speculator import Speculator
from dsv3c.runtime.engine.strategies.beams import Beams
from dsv3c.runtime.engine.strategies.single import Single
from dsv3c.runtime.errors import Forked, ModelClosed, ParameterInvalid

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor


class Ticket:
    """A request that was handed in: its events as they come, by iteration in a thread or a coroutine, or its results.

    One consumer at a time. An iteration that ends early, also by an error in the loop's body, cancels the request.
    """

    def __init__(self, engine: Engine, jobs: list[Job]) -> None:
        self._engine = engine
        self._jobs = jobs
        self._results: dict[int, Generation] = {}

    def cancel(self) -> None:
        """End the request: its pages are free before the next step begins, and its last events say "cancelled". Any
        thread may call it; a request that is done is left as it is."""
        for job in self._jobs:
            job.cancelled = True
        self._engine.reap()

    def __iter__(self) -> Iterator[Event]:
        """Raises the fault that ended the request, a class of RuntimeFault."""
        try:
            while True:
                yield from self._arrived()
                if not self._open:
                    return
                self._engine.advance(self)
        finally:
            if self._open:
                self.cancel()

    async def __aiter__(self) -> AsyncGenerator[Event, None]:
        """As `__iter__`; steps run in a thread, one for all coroutines of a loop."""
        try:
            while True:
                for event in self._arrived():
                    yield event
                if not self._open:
                    return
                await self._engine.advanced(self)
        finally:
            if self._open:
                self.cancel()

    def results(self) -> list[Generation]:
        """The whole answers, in the order of their index, after all events that were not taken."""
        for _ in self:
            pass
        return [self._results[index] for index in sorted(self._results)]

    async def wait(self) -> list[Generation]:
        """As `results`."""
        async for _ in self:
            pass
        return [self._results[index] for index in sorted(self._results)]

    @property
    def done(self) -> bool:
        """Whether no step does anything for it any more; what came of it may still have to be taken."""
        return all(job.done for job in self._jobs)

    @property
    def waiting(self) -> bool:
        """Whether it takes a step to know more."""
        return self._open and not any(job.events or job.done for job in self._jobs)

    @property
    def _open(self) -> bool:
        return bool(self._jobs)

    def _arrived(self) -> Iterator[Event]:
        for job in list(self._jobs):
            done = job.done  # before the events are looked at: none comes after it
            while job.events:
                event = job.events.popleft()
                if event.generation is not None:
                    self._results[event.index] = event.generation
                yield event
            if done:
                self._jobs.remove(job)
                if job.error is not None:
                    raise job.error


class Engine:
    """Hands requests to the scheduler and lets their consumers drive it. Any thread may use it."""

    def __init__(self, session: Session, prefix_cache: PrefixCache | None, speculator: Speculator | None) -> None:
        self.session = session
        self.scheduler = Scheduler(session, prefix_cache, speculator)
        self._turns = session.turns
        self._stepping = False
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Future[None]] = (
            weakref.WeakKeyDictionary()
        )
        self._threads: ThreadPoolExecutor | None = None
        self._threads_of = 0  # the process

    def submit(self, task: Task, max_pages: int) -> Ticket:
        """A request for the next step. max_pages: of a sequence. Raises ParameterInvalid for one that no step holds."""
        jobs = [Job(task, strategy) for strategy in self._strategies(task, max_pages)]
        for job in jobs:
            self.scheduler.add(job)
        return Ticket(self, jobs)

    def advance(self, ticket: Ticket) -> None:
        """Make a step, unless the ticket has news by the time it is this thread's turn."""
        with self._turns:
            if not ticket.waiting:
                return
            if self.session.closed:
                self.scheduler.abandon(ModelClosed())
                return
            if self._stepping and self._turns.forked:  # the thread that was at it is not in this process
                self._stepping = False
                self.scheduler.abandon(Forked(device=type(self.session.device).__name__))
                return
            self._stepping = True
            try:
                self.scheduler.step()
            except Exception as error:
                self.scheduler.abandon(error)
            finally:
                self._stepping = False

    async def advanced(self, ticket: Ticket) -> None:
        """As `advance`, in a thread; the coroutines of a loop wait for one step together."""
        import asyncio  # here, since it takes longer to import than all of this package

        loop = asyncio.get_running_loop()
        step = self._loops.get(loop)
        if step is None or step.done():
            step = self._loops[loop] = loop.run_in_executor(self._executor(), self.advance, ticket)
        await asyncio.wait([step])
        step.result()

    def reap(self) -> None:
        """Let go of cancelled requests now, if no step is under way; it does so itself."""
        if self._turns.try_enter():
            try:
                if not self._stepping:
                    self.scheduler.reap()
            finally:
                self._turns.leave()

    def settle(self) -> None:
        """As `reap`, after the step that is under way."""
        with self._turns:
            self.scheduler.reap()

    def report(self) -> dict[str, Any]:
        """What the prefix cache and speculation did so far."""
        found: dict[str, Any] = {}
        cache, speculator = self.scheduler.prefix_cache, self.scheduler.speculator
        if cache is not None:
            found["prefix_cache"] = {"pages": cache.cached_pages, "hits": cache.hits, "lookups": cache.lookups}
        if speculator is not None:
            found["speculation"] = speculator.report()
        return found

    def _executor(self) -> ThreadPoolExecutor:
        """One thread, which a forked child does not have: there it is another."""
        from concurrent.futures import ThreadPoolExecutor

        if self._threads is None or self._threads_of != os.getpid():
            self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dsv3c-step")
            self._threads_of = os.getpid()
        return self._threads

    def _strategies(self, task: Task, max_pages: int) -> list[Single | Beams]:
        params, bounds = task.params, self.session.plan.bounds
        most = min(bounds.S, bounds.R, bounds.T)
        if params.num_beams > most:
            raise ParameterInvalid(
                name="num_beams",
                value=params.num_beams,
                reason=f"a step of this artifact holds {most} sequences (compile with --max-sequences, --max-tokens)",
            )

        def lane() -> Lane:
            return Lane(self.session.new_sequence(max_pages), History(task.prompt))

        if params.num_beams > 1:
            return [Beams(task, lane())]
        return [Single(task, lane(), index) for index in range(params.num_return_sequences)]
