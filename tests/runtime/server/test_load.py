"""Many clients at once: every answer is whole and what the engine gives alone, and nothing is left over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import httpx2
import pytest

from dsv3c.runtime import load as load_model
from dsv3c.runtime.model import Model
from dsv3c.runtime.server.settings import Settings
from tests.runtime.server.conftest import CONTEXT, VOCAB, Running, Steps, running
from tests.runtime.server.load import Mix, Told, Wish, all_at_once, ask, client, load
from tests.waiting import until

CLIENTS = 24
MIX = Mix(VOCAB, longest_prompt=200, longest_answer=24, longest_stay=0.05, leaving=0.3)
GREEDY, SEEDED = Wish((5, 6, 7), 12), Wish((7, 6, 5), 12, temperature=0.8, seed=3)


@pytest.fixture(scope="module")
def alone(tiny: Path) -> Iterator[Model]:
    with load_model(tiny, prefix_cache=False) as model:
        yield model


def expected(model: Model, wish: Wish) -> tuple[str, int]:
    found = model.generate(list(wish.prompt), **wish.how)
    return found.text, len(found.token_ids)


def require_nothing_left(server: Running) -> None:
    """Within a moment: what clients left ends with the step that is under way."""
    served = server.service.models.find(None)
    assert served.loaded is not None
    pool = served.loaded.model.session.pool
    until(lambda: (pool.free_pages, served.admission.busy, len(served.admission.waiting)) == (pool.pages, 0, 0))
    slots = httpx2.get(f"{server.url}/slots").json()
    assert not any(slot["is_processing"] for slot in slots)


def test_answers_to_a_crowd_are_those_of_the_engine_alone(serving: Callable[..., Running], alone: Model) -> None:
    server = serving(queue=4 * CLIENTS)  # who left stands in line until that is noticed, and asks again before
    found = asyncio.run(load(server.url, MIX.wish, CLIENTS, seconds=0.6))
    require_nothing_left(server)
    assert all(told.whole or told.left for told in found), [told for told in found if told.status != 200 or told.fault]
    assert any(told.left for told in found)
    whole = [told for told in found if told.whole]
    assert len(whole) >= CLIENTS // 2
    for told in random.Random(1).sample(whole, CLIENTS // 2):
        assert (told.text, told.tokens) == expected(alone, told.wish)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("wish", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_clients_that_ask_the_same_get_the_same(served: Running, alone: Model, wish: Wish, stream: bool) -> None:
    same = Wish(wish.prompt, wish.tokens, wish.temperature, wish.seed, stream)
    found = asyncio.run(all_at_once(served.url, [same] * 8))
    assert {(told.text, told.tokens) for told in found if told.whole} == {expected(alone, wish)}
    assert all(told.whole for told in found)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_clients_that_leave_give_their_pages_back(served: Running, stream: bool) -> None:
    wishes = [Wish((9, 8, number + 3), CONTEXT - 8, stream=stream, leaves=0.02 * number) for number in range(8)]
    found = asyncio.run(all_at_once(served.url, wishes))
    assert any(told.left for told in found)
    require_nothing_left(served)
    assert asyncio.run(all_at_once(served.url, [GREEDY]))[0].whole


def test_who_finds_the_queue_full_is_told_when_to_come_again(tiny_settings: Settings) -> None:
    steps, room = Steps(first=0), tiny_settings.max_batch + tiny_settings.queue

    async def crowd(url: str) -> list[Told]:
        async with client(url) as http:
            asked = [asyncio.create_task(ask(http, Wish((3, 4, number + 3), 30))) for number in range(2 * room)]
            for answered in islice(asyncio.as_completed(asked), room):
                await answered
            steps.gate.set()  # for those who found room
            return await asyncio.gather(*asked)

    with running(tiny_settings, steps.load) as server:
        found = asyncio.run(crowd(server.url))
        refused = [told for told in found if told.status == 429]
        assert len(refused) == room and all(told.retry_after >= 1 for told in refused)
        assert all(told.whole for told in found if told.status != 429)
        require_nothing_left(server)
