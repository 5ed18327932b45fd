"""Many requests side by side on the toy: each gets what it gets alone, and every page comes back."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from collections.abc import Sequence as Many
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c.runtime import errors
from dsv3c.runtime.engine.cache import Sequence
from dsv3c.runtime.engine.engine import Ticket
from dsv3c.runtime.engine.prefix_cache import PrefixCache
from dsv3c.runtime.engine.scheduler import Scheduler
from dsv3c.runtime.engine.session import Ints
from dsv3c.runtime.engine.speculation import Drafting
from dsv3c.runtime.engine.speculation.ngram import NgramDrafter
from dsv3c.runtime.engine.speculation.speculator import Speculator
from dsv3c.runtime.engine.strategies.single import Single
from dsv3c.runtime.model import Model, Serving
from tests.runtime import toy
from tests.runtime.engine_checks import draft_always
from tests.runtime.toy import expected_logits

Make = Callable[..., Model]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(slots): a model of the toy with a cache of that many tokens."""

    def made(slots: int = 64, context: int = 64, prefix_cache: bool = True, **bounds: int) -> Model:
        path = tmp_path / "-".join(map(str, bounds.values()))
        artifact = toy.toy_artifact(path, **bounds)
        serving = Serving(prefix_cache=prefix_cache)
        return Model(artifact, toy.ToyDevice(artifact.plan, slots), context, serving)

    return made


def greedy(prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(expected_logits(tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def device(model: Model) -> toy.ToyDevice:
    assert isinstance(model.session.device, toy.ToyDevice)
    return model.session.device


def free(model: Model) -> int:
    return int(model.report()["cache_pages_free"])


def submit(model: Model, prompt: list[int], count: int, **how: Any) -> Ticket:
    return model.submit(prompt, max_new_tokens=count, ignore_eos=True, **how)


def tokens(ticket: Ticket) -> list[int]:
    return list(ticket.results()[0].token_ids)


def test_answers_of_a_batch_are_those_of_each_prompt_alone_in_the_order_of_prompts(make: Make) -> None:
    model = make(slots=256)
    prompts = [[7 * i % 50 + 1] * (1 + 3 * i) for i in range(7)]  # more than a step holds
    found = model.generate_batch(prompts, max_new_tokens=9, ignore_eos=True)
    assert [list(each.token_ids) for each in found] == [greedy(prompt, 9) for prompt in prompts]
    assert max(rows for _, _, rows in device(model).steps) == 3  # sequences of a step
    assert free(model) == 64


def test_a_finished_request_leaves_and_a_waiting_one_enters_at_the_next_step(make: Make) -> None:
    model = make(slots=256, S=2, R=2)
    short, long, late = (submit(model, [i], count) for i, count in ((3, 2), (4, 6), (5, 2)))
    scheduler = model.engine.scheduler
    seen = []
    while not scheduler.idle:
        scheduler.step()
        seen.append(tuple(sum(len(job.events) for job in ticket._jobs) for ticket in (short, long, late)))
    assert seen[0] == (1, 1, 0)  # prompts of two
    assert seen[2][2] > 0  # the third while the second goes on
    assert seen[2][1] < seen[-1][1]
    assert [tokens(ticket) for ticket in (short, long, late)] == [greedy([i], n) for i, n in ((3, 2), (4, 6), (5, 2))]


def test_a_long_prompt_does_not_keep_others_from_decoding(make: Make) -> None:
    model = make(slots=256)
    running = iter(submit(model, [9, 8], 20))
    next(running)
    long = submit(model, list(range(40)), 1)  # five steps of eight tokens
    before = len(device(model).steps)
    for _ in range(5):
        next(running)
    steps = device(model).steps[before:]
    assert [entry for entry, _, _ in steps].count("prefill") == 5
    assert all(first != second for first, second in pairwise(steps))  # in turn
    assert tokens(long) == greedy(list(range(40)), 1)


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_requests_that_find_no_page_wait_and_none_is_lost(make: Make, prefix_cache: bool) -> None:
    model = make(slots=48, context=40, prefix_cache=prefix_cache)
    prompts = [[i + 1] * 9 for i in range(5)]
    found = model.generate_batch(prompts, max_new_tokens=25, ignore_eos=True)
    assert [list(each.token_ids) for each in found] == [greedy(prompt, 25) for prompt in prompts]
    read = sum(count for _, count, _ in device(model).steps)
    assert read > 5 * (9 + 24)  # some were read again
    assert free(model) == 12


def test_what_waits_or_reads_again_is_looked_up_and_spared_once(make: Make) -> None:
    model = make(slots=48, context=40)
    found = model.generate_batch([[i + 1] * 9 for i in range(5)], max_new_tokens=25, ignore_eos=True)
    assert [each.cached_tokens for each in found] == [0] * 5
    again = model.generate([5] * 9, max_new_tokens=1)
    cache = model.report()["prefix_cache"]
    assert (again.cached_tokens, cache["hits"], cache["lookups"]) == (8, 8, 6 * 9)


def test_a_request_alone_that_the_cache_cannot_hold_is_refused(make: Make) -> None:
    model = make(slots=16, context=64)
    with pytest.raises(errors.OutOfPages):
        submit(model, [1] * 20, 4).results()
    with pytest.raises(errors.OutOfPages):
        submit(model, [1] * 10, 20).results()
    assert tokens(submit(model, [1] * 10, 4)) == greedy([1] * 10, 4)
    assert free(model) == 4


def test_a_step_whose_requests_gave_their_pages_back_refuses_nobody(make: Make) -> None:
    model = make(slots=28, context=20, S=1, R=1)  # more requests decode than a step holds
    prompts = [[i + 1] * 5 for i in range(4)]
    found = model.generate_batch(prompts, max_new_tokens=14, ignore_eos=True)
    assert [list(each.token_ids) for each in found] == [greedy(prompt, 14) for prompt in prompts]


def test_a_prompt_that_is_being_read_goes_on_beside_one_that_waits_for_its_pages(make: Make) -> None:
    model = make(slots=40, context=40, prefix_cache=False)
    first = submit(model, list(range(30)), 2)  # read in four steps
    model.engine.scheduler.step()
    second = submit(model, [9] * 20, 2, priority=1)
    assert tokens(second) == greedy([9] * 20, 2)
    assert tokens(first) == greedy(list(range(30)), 2)


def test_higher_priority_is_served_first_and_equals_in_their_order(make: Make) -> None:
    model = make(slots=256, S=1, R=1)
    order: list[str] = []
    tickets = {name: submit(model, [1, 2], 1, priority=level) for name, level in (("a", 0), ("b", 0), ("c", 5))}
    while not model.engine.scheduler.idle:
        model.engine.scheduler.step()
        order += [name for name, ticket in tickets.items() if ticket._jobs[0].done and name not in order]
    assert order == ["c", "a", "b"]


def test_cancelling_gives_the_pages_back_within_a_step(make: Make) -> None:
    model = make(slots=64, prefix_cache=False)
    first, second = submit(model, [1] * 9, 30), submit(model, [2] * 9, 8)
    events = iter(second)
    next(events)
    held = free(model)
    first.cancel()
    assert free(model) >= held + 3
    assert first.results()[0].finish_reason == "cancelled"
    assert [event.token_id for event in events][:-1] == greedy([2] * 9, 8)[1:]
    assert free(model) == 16


def test_a_loop_that_ends_early_cancels(make: Make) -> None:
    model = make(prefix_cache=False)
    for _ in submit(model, [1, 2, 3], 30):
        break
    assert free(model) == 16 and model.engine.scheduler.idle


def test_time_that_is_up_ends_an_answer(make: Make) -> None:
    model = make()
    now = [0.0]
    scheduler = Scheduler(model.session, clock=lambda: now[0])
    model.engine.scheduler = scheduler
    ticket = submit(model, [1, 2], 40, max_time=3)
    for _ in range(9):
        scheduler.step()
        now[0] += 1
    result = ticket.results()[0]
    assert result.finish_reason == "time"
    assert list(result.token_ids) == greedy([1, 2], len(result.token_ids)) and 2 <= len(result.token_ids) <= 4


def test_a_second_request_with_the_same_beginning_reads_the_rest_only(make: Make) -> None:
    model = make(slots=128)
    prompt = list(range(30))
    model.generate(prompt, max_new_tokens=2, ignore_eos=True)
    before = len(device(model).steps)
    found = model.generate([*prompt, 7], max_new_tokens=2, ignore_eos=True)
    assert list(found.token_ids) == greedy([*prompt, 7], 2)
    assert found.cached_tokens == 28  # full pages of four
    assert [count for _, count, _ in device(model).steps[before:]] == [3, 1]


def test_prompts_that_begin_alike_are_read_once(make: Make) -> None:
    model = make(slots=256)
    prompts = [[*range(24), last] for last in (1, 2, 3)]
    found = model.generate_batch(prompts, max_new_tokens=1, ignore_eos=True)
    assert [list(each.token_ids) for each in found] == [greedy(prompt, 1) for prompt in prompts]
    assert sum(count for _, count, _ in device(model).steps) == 25 + 1 + 1


def test_several_results_share_the_prompt_and_differ_by_their_numbers(make: Make) -> None:
    model = make(slots=256)
    how = {"temperature": 2.0, "seed": 5, "max_new_tokens": 8, "ignore_eos": True}
    found = model.generate(list(range(17)), num_return_sequences=3, **how)
    texts = [each.token_ids for each in (found, *found.others)]
    assert len(set(texts)) == 3
    assert texts[0] == model.generate(list(range(17)), **how).token_ids
    assert found.others[0].cached_tokens == 16


class Breaks(errors.RuntimeFault):
    message = "the device broke"


def test_a_fault_of_the_device_ends_the_requests_of_that_step_and_the_engine_goes_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(slots=256, S=2, R=2)
    tickets = [submit(model, [i, 2], 5) for i in range(3)]
    run, calls = toy.ToyDevice.run, []

    def fails_once(self: toy.ToyDevice, entry: str) -> None:
        calls.append(entry)
        if len(calls) == 2:
            raise Breaks()
        run(self, entry)

    monkeypatch.setattr(toy.ToyDevice, "run", fails_once)
    for ticket in tickets[:2]:
        with pytest.raises(Breaks):
            ticket.results()
    assert tokens(tickets[2]) == greedy([2, 2], 5)
    assert free(model) == 64


def raising(monkeypatch: pytest.MonkeyPatch, of: type, name: str, error: Exception, at: int) -> None:
    """Call number `at` of this method raises."""
    method, calls = getattr(of, name), []

    def counted(self: Any, *args: Any) -> Any:
        calls.append(name)
        if len(calls) == at:
            raise error
        return method(self, *args)

    monkeypatch.setattr(of, name, counted)


@pytest.mark.parametrize("error", [MemoryError(), KeyError(7)], ids=repr)
@pytest.mark.parametrize(
    ("of", "name", "at", "failed"),
    [
        (toy.ToyDevice, "run", 2, (0, 1)),
        (Single, "advance", 2, (1,)),
        (Single, "end", 2, (1,)),
        (PrefixCache, "insert", 2, (1,)),
        (PrefixCache, "match", 2, (0, 1, 2)),
        (Sequence, "reserve", 3, (0, 1, 2)),
    ],
)
def test_what_is_no_fault_ends_requests_too_and_the_next_is_served(
    make: Make, monkeypatch: pytest.MonkeyPatch, error: Exception, of: type, name: str, at: int, failed: tuple[int, ...]
) -> None:
    model = make(slots=256, S=2, R=2)
    raising(monkeypatch, of, name, error, at)
    tickets = [submit(model, [i, 2], 5) for i in range(3)]
    for index, ticket in enumerate(tickets):
        if index in failed:
            with pytest.raises(errors.Unforeseen, match=f"a step failed: {type(error).__name__} at counted:") as found:
                ticket.results()
            assert found.value.__cause__ is error
        else:
            assert tokens(ticket) == greedy([index, 2], 5)
    assert tokens(submit(model, [4, 2], 5)) == greedy([4, 2], 5)
    assert model.engine.scheduler.idle and free(model) == 64


def test_beams_beyond_a_step_are_refused_at_once(make: Make) -> None:
    with pytest.raises(errors.ParameterInvalid, match="holds 3 sequences"):
        make().submit([1], num_beams=4)
    with pytest.raises(errors.ParameterInvalid, match="holds 2 sequences"):
        make(T=2).submit([1], num_beams=3)


def test_a_window_slides_and_what_stays_is_read_at_its_new_positions(make: Make) -> None:
    model = make(slots=64, context=16)
    found = model.generate([1, 2, 3, 4, 5, 6], max_new_tokens=30, ignore_eos=True, overflow="slide")
    text = [1, 2, 3, 4, 5, 6]
    window = list(text)
    for _ in range(30):
        text.append(int(expected_logits(window)[-1].argmax()))
        window.append(text[-1])
        if len(window) > 16:
            window = text[:4] + text[-4:]  # the first tokens, and as many of the last that half of the context is used
    assert list(found.token_ids) == text[6:]
    assert found.dropped_tokens == len(text) - len(window)
    assert model.generate([1] * 40, max_new_tokens=2, overflow="slide", ignore_eos=True).dropped_tokens == 32


@pytest.mark.parametrize("context", range(1, 10))
def test_the_smallest_windows_slide_too(make: Make, context: int) -> None:
    model = make(context=context)
    found = model.generate([5], max_new_tokens=30, ignore_eos=True, overflow="slide")
    text, window, size = [5], [5], max(1, context // 2)
    for _ in range(30):
        text.append(int(expected_logits(window)[-1].argmax()))
        window.append(text[-1])
        if len(window) > context:
            sinks = min(4, size - 1)
            window = text[:sinks] + text[sinks - size :]
    assert list(found.token_ids) == text[1:]


class Foresees(NgramDrafter):
    """Drafts that are right, as far as the window does not slide."""

    def propose(self, drafting: Many[Drafting], count: int) -> list[Ints]:
        return [np.array(greedy(each.lane.tokens.tolist(), count), np.int32) for each in drafting]


@pytest.mark.parametrize("context", [16, 17, 19])  # of pages of four tokens
def test_drafts_do_not_move_where_a_window_slides(make: Make, context: int) -> None:
    model = make(slots=256, context=context, T=16, R=8)
    model.engine.scheduler.speculator = Speculator(model.session, Foresees())
    draft_always(model)
    how: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True, "overflow": "slide"}
    found = model.generate([1, 2, 3], **how)
    assert found.drafted.accepted > 10
    assert found.token_ids == model.generate([1, 2, 3], speculate=False, **how).token_ids


def test_threads_share_the_steps(make: Make) -> None:
    model = make(slots=512)
    found: dict[int, list[int]] = {}

    def work(first: int) -> None:
        found[first] = tokens(submit(model, [first, 3], 12))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {first: greedy([first, 3], 12) for first in range(8)}
    assert sum(rows for _, _, rows in device(model).steps) == 8 * 12
    assert free(model) == 128


def require_whole(model: Model) -> None:
    """Every page is free, idle in the prefix cache, or held as often as its references say."""
    pool = model.session.pool
    held = [0] * pool.pages
    for job in model.engine.scheduler._jobs:
        for lane in job.strategy.lanes:
            for page in lane.sequence.pages.tolist():
                held[page] += 1
    cache = model.engine.scheduler.prefix_cache
    cached = set() if cache is None else set(cache._keys)
    assert [pool.references(page) for page in range(pool.pages)] == [
        count + (page in cached) for page, count in enumerate(held)
    ]
    assert pool.free_pages == sum(count == 0 for count in held)


def watch_writers(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every page that a step writes belongs to one alone. Returns the numbers of references seen."""
    pool, run, seen = model.session.pool, toy.ToyDevice.run, list[int]()

    def watched(self: toy.ToyDevice, entry: str) -> None:
        for t in range(int(self.inputs["control"][0])):
            page = self._slot(t, int(self.inputs["positions"][t])) // pool.page_size
            seen.append(pool.references(page))
            assert seen[-1] == 1
        run(self, entry)

    monkeypatch.setattr(model.session.device, "run", watched.__get__(model.session.device))
    return seen


@pytest.mark.parametrize("seed", [1, 2])
def test_a_load_of_random_requests_is_answered_as_alone(make: Make, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    model = make(slots=96, context=40, T=16, R=8, S=6)
    written = watch_writers(model, monkeypatch)
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 1.5},
        {"temperature": 1.0, "top_k": 5},
        {"num_beams": 3},
        {"repetition_penalty": 1.3},
        {"temperature": 1.0, "min_p": 0.2, "frequency_penalty": 0.5},
    ]
    waiting: list[tuple[list[int], dict[str, Any], Ticket, bool]] = []
    for number in range(60):
        prompt = [rng.randrange(50) for _ in range(rng.randrange(1, 24))]
        if rng.random() < 0.4 and waiting:
            prompt = waiting[rng.randrange(len(waiting))][0][:12] + prompt[:10]
        how = rng.choice(kinds) | {"seed": number, "max_new_tokens": rng.randrange(1, 12), "ignore_eos": True}
        ticket = model.submit(prompt, priority=rng.randrange(3), **how)
        waiting.append((prompt, how, ticket, rng.random() < 0.2))
        for _ in range(rng.randrange(3)):
            model.engine.scheduler.step()
            require_whole(model)
        if rng.random() < 0.3:
            for _, _, other, cancelled in waiting:
                if cancelled and rng.random() < 0.5:
                    other.cancel()
    steps = 0
    while not model.engine.scheduler.idle:
        model.engine.scheduler.step()
        require_whole(model)
        steps += 1
        assert steps < 3000
    assert free(model) == 24 and written
    alone = make(slots=320, context=40, T=16, R=8, S=5)
    for prompt, how, ticket, cancelled in waiting:
        found = ticket.results()[0]
        whole = alone.generate(prompt, **how)
        if found.finish_reason == "cancelled":
            assert cancelled
            assert how.get("num_beams") or found.token_ids == whole.token_ids[: len(found.token_ids)]
        else:
            assert found.token_ids == whole.token_ids, how
