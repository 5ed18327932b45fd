"""The line before a model: who is at work, who waits, who is sent away, and that every slot comes back."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from dsv3c.runtime.server.admission import Admission, Place
from dsv3c.runtime.server.errors import QueueFull


def test_slots_are_taken_in_order_and_given_back() -> None:
    admission = Admission(slots=3, queue=5)
    with ExitStack() as others:
        first = others.enter_context(admission.place(2))
        assert first.working and first.slots == (0, 1) and admission.busy == 2
        with admission.place(2) as second, admission.place(1) as third:
            assert not second.working and not third.working  # nobody overtakes
            others.close()
            assert second.working and third.working and admission.busy == 3
    assert admission.busy == 0 and not admission.waiting and not admission.working


def test_a_full_line_sends_away_with_a_time() -> None:
    admission = Admission(slots=1, queue=1)
    with admission.place(1), admission.place(1):
        with pytest.raises(QueueFull, match="1 requests are at work and 1 wait") as caught, admission.place(1):
            pass
        assert caught.value.retry_after is not None and 1 <= caught.value.retry_after <= 60
    with admission.place(1) as place:
        assert place.working


def test_without_a_line_only_those_come_in_that_work_at_once() -> None:
    admission = Admission(slots=2, queue=0)
    with admission.place(2), pytest.raises(QueueFull), admission.place(1):
        pass
    with admission.place(1), admission.place(1) as place:
        assert place.working


def test_who_leaves_the_line_lets_the_next_one_move_up() -> None:
    async def scenario() -> list[str]:
        admission, seen = Admission(slots=1, queue=9), list[str]()

        async def come(name: str) -> None:
            with admission.place(1) as place:
                await place.turn()
                seen.append(name)
                await asyncio.sleep(0)

        with admission.place(1):
            tasks = [asyncio.create_task(come(name)) for name in "abc"]
            await asyncio.sleep(0)
            tasks[0].cancel()
            await asyncio.sleep(0)
            assert [type(place) for place in admission.waiting] == [Place, Place]
        await asyncio.wait(tasks)
        assert admission.busy == 0
        return seen

    assert asyncio.run(scenario()) == ["b", "c"]
