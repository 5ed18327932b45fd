"""Many requests share one session: who is in a step, who waits, who gives its pages back.

A step of the scheduler is at most two of the session. The first feeds every request that decodes its token, and its
drafts; the second reads prompts, as many tokens as a step takes: a long prompt delays the others by one such step at a
time. The two stay apart since their forms of attention differ (docs/34-engine.md).

Requests are served by priority, and first come first served among equals. A prompt enters when there are pages for all
of it. When one that is under way finds no page, the one that is served last gives all of its own back and waits; its
tokens are read again later, as far as they are no longer in the prefix cache.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from dsv3c.runtime.engine.generation import FinishReason
from dsv3c.runtime.engine.jobs import Job
from dsv3c.runtime.engine.lanes import Lane, common_length
from dsv3c.runtime.engine.prefix_cache import PrefixCache
from dsv3c.runtime.engine.session import Chunk, Request, Session, Want
from dsv3c.runtime.engine.speculation.speculator import Speculator
from dsv3c.runtime.engine.strategies import Rows
from dsv3c.runtime.engine.strategies.single import Single
from dsv3c.runtime.errors import OutOfPages


class Fed(NamedTuple):
    """What a step feeds lanes of a request."""

    job: Job
    lanes: list[Lane]
    requests: list[Request]


class Scheduler:
    """Owns the steps of a session. Used by one thread at a time; `add` and `Job.cancelled` may come from any."""

    def __init__(
        self,
        session: Session,
        prefix_cache: PrefixCache | None = None,
        speculator: Speculator | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.session = session
        self.prefix_cache = prefix_cache
        self.speculator = speculator
        self._clock = clock
        self._arrivals: deque[Job] = deque()
        self._jobs: list[Job] = []  # by rank
        self._arrived = 0
        self._steps = 0

    @property
    def idle(self) -> bool:
        return not self._jobs and not self._arrivals

    def add(self, job: Job) -> None:
        most = job.task.params.max_time
        job.deadline = None if most is None else self._clock() + most
        self._arrivals.append(job)

    def step(self) -> None:
        """A step for everyone who can have one. A fault of the device ends the requests that were in it; what is raised
        is one of the scheduler's own, whose requests have to be abandoned."""
        self.reap()
        self._steps += 1
        moved = self._decode()
        moved |= self._read()
        if not moved and self._jobs:
            self._put_back_for(next((job for job in self._jobs if not job.ready), self._jobs[0]))
        self.reap()

    def reap(self) -> None:
        """Take in who has come; let go of who is cancelled or out of time."""
        if self._arrivals:
            self._take_arrivals()
        now = self._clock()
        for job in list(self._jobs):
            if job.cancelled:
                self._finish(job, "cancelled")
            elif job.strategy.reason is not None:  # nothing to generate
                self._finish(job, job.strategy.reason)
            elif job.deadline is not None and now >= job.deadline:
                self._finish(job, "time")

    def _take_arrivals(self) -> None:
        while self._arrivals:
            job = self._arrivals.popleft()
            job.number = self._arrived
            self._arrived += 1
            self._jobs.append(job)
        self._jobs.sort(key=lambda job: job.rank)

    def abandon(self, error: Exception) -> None:
        """End all requests with a fault."""
        self._take_arrivals()
        for job in list(self._jobs):
            with suppress(Exception):  # nobody waits for ever, whatever else is at fault
                if job.cancelled:
                    self._finish(job, "cancelled")
                else:
                    self._fail(job, error)

    # ---- decoding

    def _decode(self) -> bool:
        chosen = self._chosen(job for job in self._jobs if job.ready)
        jobs = self._with_pages(chosen)
        if not jobs:
            return bool(chosen)  # their pages are for others, who may not have been chosen
        began = self._clock()
        speculator = self.speculator
        if speculator is None or speculator.rests:
            if self._run([_decoding(job) for job in jobs], began) and speculator is not None:
                speculator.rested(self._clock() - began)
            return True
        count = sum(len(job.strategy.lanes) for job in jobs)
        drafting = [job.strategy for job in jobs if isinstance(job.strategy, Single) and _drafts(job)]
        speculator.propose(drafting, count, self._rows - count)
        drafted = self._clock()
        if self._run([_decoding(job) for job in jobs], began):
            speculator.stepped(drafted - began, self._clock() - drafted)
        return True

    @property
    def _rows(self) -> int:
        """Tokens whose logits one step gives."""
        return min(self.session.plan.bounds.R, self.session.plan.bounds.T)

    def _chosen(self, jobs: Iterable[Job]) -> list[Job]:
        """Those that fit into a step, who has waited longest first."""
        chosen, room = [], min(self._rows, self.session.plan.bounds.S)
        for job in sorted(jobs, key=lambda job: (job.served, job.rank)):
            lanes = len(job.strategy.lanes)
            if lanes <= room:
                chosen.append(job)
                room -= lanes
        return chosen

    def _with_pages(self, jobs: Many[Job]) -> list[Job]:
        """Those that find a page for their next token. The first ranks take from the last ones."""
        found = []
        for job in sorted(jobs, key=lambda job: job.rank):
            while job.ready and not self._has_pages(job):
                self._put_back_for(job)
            if job.ready:
                found.append(job)
        return found

    def _has_pages(self, job: Job) -> bool:
        return all(self._reserve(lane, lane.size) for lane in job.strategy.lanes)

    def _reserve(self, lane: Lane, length: int) -> bool:
        """Whether there are pages for so many tokens; drafts give back what they have of them."""
        try:
            self.session.reserve(lane.sequence, length)
        except OutOfPages:
            given_back = self.speculator is not None and self.speculator.give_back()
            return given_back and self._reserve(lane, length)
        return True

    def _put_back_for(self, job: Job) -> None:
        """The request that is served last gives its pages back, for `job` or because it is that one. It fails if no
        other holds any."""
        holders = [other for other in self._jobs if other.holds_pages]
        if not any(other is not job for other in holders):
            self._refuse(job)
            return
        for lane in holders[-1].strategy.lanes:
            self._keep(lane)
            self._leave(lane)

    # ---- reading prompts

    def _read(self) -> bool:
        began = self._clock()
        bounds = self.session.plan.bounds
        room, fed, moved, waits = bounds.T, list[Fed](), False, False
        for job in [job for job in self._jobs if not job.ready]:
            if not room or len(fed) == min(bounds.S, bounds.R):
                break
            lane = next(lane for lane in job.strategy.lanes if not lane.ready)
            if any(self._will_share(lane, other) for each in fed for other in each.lanes):
                continue
            if not lane.admitted:
                waits = waits or not self._admit(job, lane)
                if waits:
                    continue  # nobody overtakes; those that are in already go on
                moved = True
            request = self._reading(job, lane, room)
            if request is None:
                moved = moved or not lane.admitted
            else:
                fed.append(Fed(job, [lane], [request]))
                room -= request.tokens.size
        if fed:
            self._run(fed, began)
        return bool(fed) or moved

    def _reading(self, job: Job, lane: Lane, room: int) -> Request | None:
        """As much of what is pending as there is room for. The last token gives logits, unless the request has further
        lanes: then it stays for a step that all of them are in."""
        pending = lane.pending
        alone = len(job.strategy.lanes) == 1
        tokens = pending[: min(room, pending.size if alone else pending.size - 1)]
        if not tokens.size:
            return None
        while not self._reserve(lane, lane.sequence.length + tokens.size):  # a window that has slid
            self._put_back_for(job)
            if not lane.admitted:
                return None
        want: Want = "last" if alone and tokens.size == pending.size else "none"
        return Request(lane.sequence, tokens, want, experts=job.experts is not None)

    def _admit(self, job: Job, lane: Lane) -> bool:
        """Take pages for all that is pending; what the prefix cache has is there already. One is left for each lane
        that is under way. False while there are not as many."""
        if self.prefix_cache is not None and not lane.dropped:
            self.prefix_cache.match(lane.sequence, lane.tokens)
        others = [other for other in self._jobs if other.holds_pages and other is not job]
        spare = sum(len(other.strategy.lanes) for other in others)
        try:
            self.session.pool.require(lane.sequence.pages_needed(lane.size) + spare)
            self.session.reserve(lane.sequence, lane.size)
        except OutOfPages:
            lane.leave()
            return False
        lane.admitted = True
        if self.prefix_cache is not None and job.served < 0:  # what it reads again later was not spared
            lane.cached = lane.sequence.length
            self.prefix_cache.count(lane.size, lane.cached)
        return True

    def _will_share(self, lane: Lane, other: Lane) -> bool:
        """Whether another lane is about to read pages that this one can take from the prefix cache then."""
        if self.prefix_cache is None or lane.admitted or lane.dropped or other.dropped:
            return False
        size = self.session.plan.page_size
        return common_length(lane.tokens, other.tokens) // size > other.sequence.length // size

    # ---- steps of the session

    def _run(self, fed: Many[Fed], began: float) -> bool:
        """One step of the session. Whether the device did it; otherwise the requests have failed."""
        for each in fed:
            each.job.served = self._steps
        try:
            # Views of one step: they are valid until the next.
            chunks = list(self.session.chunks(self._with_draws(fed)))
        except Exception as error:
            for each in fed:
                self._fail(each.job, error)
            return False
        seconds, first = self._clock() - began, 0
        for each in fed:
            try:
                self._advance(each, chunks[first : first + len(each.lanes)], seconds)
            except Exception as error:
                self._fail(each.job, error)
            first += len(each.lanes)
        for job in [each.job for each in fed if not each.job.done]:
            if job.strategy.reason is not None:
                self._finish(job, job.strategy.reason)
        return True

    def _with_draws(self, fed: Many[Fed]) -> list[Request]:
        """The requests of a step, with draws where the device can do all of them."""
        plain = [request for each in fed for request in each.requests]
        if not self.session.can_draw or (self.speculator is not None and self.speculator.hears):
            return plain
        drawn = []
        for each in fed:
            for lane, request in zip(each.lanes, each.requests, strict=True):
                draws = each.job.strategy.draws(lane) if request.rows else ()
                if draws is None:
                    return plain
                drawn.append(request._replace(draws=draws))
        return drawn

    def _advance(self, fed: Fed, chunks: Many[Chunk], seconds: float) -> None:
        job, began = fed.job, self._clock()
        starts = [lane.sequence.length - chunk.count for lane, chunk in zip(fed.lanes, chunks, strict=True)]
        wanted = fed.requests[0].rows > 0
        if job.experts is not None:
            counts = job.experts.answer if fed.requests[0].want == "all" else job.experts.prompt
            for chunk in chunks:
                counts.add_step(chunk.experts or {})
        if wanted:
            job.events += job.strategy.advance([_rows(chunk) for chunk in chunks])
        if self.speculator is not None and self.speculator.hears and _drafts(job):
            for lane, chunk, start in zip(fed.lanes, chunks, starts, strict=True):
                self.speculator.saw(lane, start, chunk.hidden)
        for lane in job.strategy.lanes:
            self._keep(lane)
        job.spent(seconds + self._clock() - began)
        job.answered |= wanted

    # ---- the end of requests

    def _finish(self, job: Job, reason: FinishReason) -> None:
        try:
            job.end(reason)
        except Exception as error:
            job.fail(error)
        self._let_go(job)

    def _fail(self, job: Job, error: Exception) -> None:
        job.fail(error)
        self._let_go(job)

    def _refuse(self, job: Job) -> None:
        pool = self.session.pool
        wanted = sum(lane.sequence.pages_needed(lane.size) for lane in job.strategy.lanes)
        self._fail(job, OutOfPages(free=pool.free_pages, page_size=pool.page_size, wanted=wanted))

    def _let_go(self, job: Job) -> None:
        self._jobs.remove(job)
        try:
            for lane in job.strategy.lanes:
                self._leave(lane)
        finally:
            job.done = True

    def _keep(self, lane: Lane) -> None:
        if self.prefix_cache is not None and not lane.dropped:
            self.prefix_cache.insert(lane.sequence, lane.tokens)

    def _leave(self, lane: Lane) -> None:
        lane.leave()
        if self.speculator is not None:
            self.speculator.forget(lane)


def _drafts(job: Job) -> bool:
    """Whether drafts may be made for it: of beams each is a text of its own, which forks and leaves."""
    return job.task.speculate and isinstance(job.strategy, Single)


def _decoding(job: Job) -> Fed:
    lanes = list(job.strategy.lanes)
    tokens = [np.concatenate([lane.pending, lane.drafts]) if lane.drafts.size else lane.pending for lane in lanes]
    count = job.experts is not None
    requests = [Request(lane.sequence, part, "all", experts=count) for lane, part in zip(lanes, tokens, strict=True)]
    return Fed(job, lanes, requests)


def _rows(chunk: Chunk) -> Rows:
    return chunk.logits if chunk.drawn is None else chunk.drawn.tolist()
