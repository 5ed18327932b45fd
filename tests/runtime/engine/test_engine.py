"""Threads, coroutines and processes that share an engine."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsv3c.runtime import errors
from dsv3c.runtime.model import Model
from tests.runtime import toy
from tests.runtime.engine.test_scheduler import device, free, greedy, submit, tokens
from tests.waiting import PATIENCE


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    artifact = toy.toy_artifact(tmp_path, T=16, R=8, S=8)
    with Model(artifact, toy.ToyDevice(artifact.plan, 512), context=64) as made:
        yield made


class Held:
    """Steps of a model, those after the first ones: `entered` by the first of them, and done when they may `leave`."""

    def __init__(self, model: Model, after: int = 0) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()
        run, free_ones = model.session.device.run, iter(range(after))

        def held(entry: str) -> None:
            if next(free_ones, None) is None:
                self.entered.set()
                self.leave.wait(PATIENCE)
            run(entry)

        model.session.device.run = held  # type: ignore[method-assign]


def test_coroutines_share_the_steps(model: Model) -> None:
    async def answer(first: int) -> list[int]:
        found = await submit(model, [first, 3], 10).wait()
        return list(found[0].token_ids)

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*(answer(first) for first in range(6)))

    assert asyncio.run(all_of_them()) == [greedy([first, 3], 10) for first in range(6)]
    assert len(device(model).steps) < 3 * 10  # not one by one
    assert asyncio.run(all_of_them()) == [greedy([first, 3], 10) for first in range(6)]  # in another loop


def test_a_coroutine_streams_and_stops(model: Model) -> None:
    async def first_tokens(count: int) -> list[int | None]:
        found: list[int | None] = []
        events = submit(model, [5, 3], 30).__aiter__()
        async for event in events:
            found.append(event.token_id)
            if len(found) == count:
                break
        await events.aclose()  # type: ignore[attr-defined]
        return found

    assert asyncio.run(first_tokens(4)) == greedy([5, 3], 4)
    assert model.engine.scheduler.idle and free(model) == 128


def test_a_cancelled_coroutine_cancels_its_request(model: Model) -> None:
    async def cancelled() -> None:
        task = asyncio.create_task(submit(model, [5, 3], 50).wait())
        await asyncio.to_thread(held.entered.wait, PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    held = Held(model)
    asyncio.run(cancelled())
    held.leave.set()
    model.engine.settle()
    assert model.engine.scheduler.idle and free(model) == 128


def test_a_fault_of_one_request_is_raised_where_it_is_waited_for(model: Model) -> None:
    good = submit(model, [1, 2], 4)
    with pytest.raises(errors.TokenOutOfRange):
        submit(model, [99], 4)
    with pytest.raises(errors.UnknownParameter):
        submit(model, [1], 4, temprature=1)
    assert tokens(good) == greedy([1, 2], 4)


def test_cancelling_from_another_thread_ends_a_wait(model: Model) -> None:
    ticket, held = submit(model, [1, 2], 60), Held(model, after=5)

    def cancel() -> None:
        held.entered.wait(PATIENCE)
        ticket.cancel()
        held.leave.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    found = ticket.results()[0]
    thread.join()
    assert found.finish_reason == "cancelled"
    assert list(found.token_ids) == greedy([1, 2], len(found.token_ids)) and 5 <= len(found.token_ids) < 60
    assert free(model) == 128


def test_closing_the_model_ends_what_waits(model: Model) -> None:
    ticket = submit(model, [1, 2], 9)
    events = iter(ticket)
    next(events)
    model.close()
    with pytest.raises(errors.ModelClosed):
        list(events)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_of_a_process_with_a_step_under_way_is_told(model: Model) -> None:
    """The thread that makes the step is not in the child: what it was at cannot go on there, new requests can."""
    other, held = submit(model, [1, 2], 5), Held(model)
    thread = threading.Thread(target=other.results)
    thread.start()
    held.entered.wait(PATIENCE)
    child = os.fork()
    if child == 0:
        model.session.device.forks = True  # type: ignore[attr-defined]
        held.leave.set()
        try:
            other.results()
        except errors.Forked:
            os._exit(0 if tokens(submit(model, [4, 2], 3)) == greedy([4, 2], 3) else 2)
        os._exit(1)
    held.leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_requests_that_share_pages_end_with_the_model(model: Model) -> None:
    beams, single = submit(model, [5, 3], 30, num_beams=3), submit(model, [4], 30)
    for _ in range(4):
        model.engine.scheduler.step()
    model.close()
    for ticket in (beams, single):
        with pytest.raises(errors.ModelClosed):
            ticket.results()
    assert model.engine.scheduler.idle
