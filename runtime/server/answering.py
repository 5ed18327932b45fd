"""A request to a model, from what is asked for to the deltas of its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dsv3c.runtime.engine.generation import Event, Generation, Task
from dsv3c.runtime.errors import GrammarInvalid, GuidanceMissing, TemplateMissing, TokenizerUnsuitable
from dsv3c.runtime.server.asked import Asked
from dsv3c.runtime.server.deltas import Begun, Delta, Deltas, Ended, Reason, Scored, Text, Thought, Usage
from dsv3c.runtime.server.errors import FieldInvalid, breaks_model
from dsv3c.runtime.server.forced import forced_calls, is_strict
from dsv3c.runtime.server.guided import after_thoughts
from dsv3c.runtime.server.metrics import Meter
from dsv3c.runtime.server.models import Lease
from dsv3c.runtime.server.prompt_scores import prompt_scores
from dsv3c.runtime.server.readers import Chat, Part, Plain, Reader
from dsv3c.runtime.server.token_texts import scored
from dsv3c.runtime.text.dialects.dialect import Dialect
from dsv3c.runtime.text.dialects.forms import Tools
from dsv3c.runtime.text.thoughts import opened_by

if TYPE_CHECKING:
    from dsv3c.runtime.engine.engine import Ticket
    from dsv3c.runtime.model import Model
    from dsv3c.runtime.text.tokenizer import Tokenizer

_GUIDES = frozenset({"grammar", "regex"})


@dataclass(frozen=True)
class Prepared:
    """A prompt that is checked and encoded, and who reads its answers. text: of the prompt, where it has one. opened:
    whether it ends within thoughts, opening: with the beginning of the answer."""

    task: Task
    text: str
    dialect: Dialect | None = None
    tools: Tools = ()
    opened: bool = False
    opening: str = ""

    def reader(self, index: int) -> Reader:
        if self.dialect is None:
            return Plain(index)
        return Chat(index, self.dialect, self.tools, self.opened, self.opening)


async def answer(lease: Lease, asked: Asked, meter: Meter) -> Deltas:
    """`Begun` first: what is wrong with the request is raised before it. Then what comes of each result, in the order
    of time, and its `Ended`. Closing the iterator ends the work.

    Raises QueueFull, FieldInvalid, and what `Model.submit` raises.
    """
    admission = lease.served.admission
    if asked.count > admission.slots:
        field, slots = asked.fields.get("num_return_sequences", "prompt"), admission.slots
        raise FieldInvalid(
            field=field, reason=f"{asked.count} answers at once are more than the {slots} of this server"
        )
    began = time.monotonic()
    with admission.place(asked.count) as place:
        prepared = await asyncio.to_thread(_prepared, lease, asked)
        lengths = tuple(each.task.prompt.size for each in prepared)
        place.prompt_tokens = sum(lengths)
        yield Begun(lengths)
        await place.turn()
        choices = [
            _Choice(number * asked.results + index, each, lease.model)
            for number, each in enumerate(prepared)
            for index in range(asked.results)
        ]
        clock = _Clock(meter, began)
        try:
            scores = [await _scores(lease.model, each.task) for each in prepared] if asked.echo else []
            for choice in choices if asked.echo else ():
                yield Text(choice.index, choice.prepared.text, scores[choice.index // asked.results])
            if not asked.complete:
                for choice in choices:
                    yield choice.nothing()
                return
            async with aclosing(_events(lease.model, prepared, asked.results)) as events:
                async for index, event in events:
                    place.tokens += event.token_id is not None
                    clock.saw(index, event)
                    for delta in choices[index].deltas(event):
                        yield delta
        except (GeneratorExit, asyncio.CancelledError):
            clock.left([choice.prepared.task.prompt.size for choice in choices])
            raise
        except Exception as error:
            if breaks_model(error):
                lease.broke(error)
            raise


async def _scores(model: Model, task: Task) -> tuple[Scored, ...]:
    """Of the prompt's tokens, for its echo, where they are asked for."""
    if task.params.logprobs is None or not model.has_tokenizer:
        return ()
    return await asyncio.to_thread(prompt_scores, model, task.prompt, task.params.logprobs)


def _prepared(lease: Lease, asked: Asked) -> list[Prepared]:
    """Runs in a thread: rendering, encoding and compiling a grammar take their time."""
    how = {"num_return_sequences": asked.results, **asked.how}  # whatever the model's default is
    if asked.messages:
        return [_of_chat(lease, replace(asked, how=how))]
    return [_of_prompt(lease.model, prompt, dict(how)) for prompt in asked.prompts]


def prompt_tokens(lease: Lease, asked: Asked) -> int:
    """Of a chat, however many the context holds. It takes its time. Raises what rendering and encoding raise."""
    return len(lease.model.tokenizer.encode_plain(_rendered(lease, asked)[0]))


def _rendered(lease: Lease, asked: Asked) -> tuple[str, Dialect, Tools]:
    dialect = lease.dialect
    if dialect is None or not lease.model.tokenizer.has_chat_template:
        raise TemplateMissing()
    tools = [] if asked.tool_choice.kind == "none" else [tool.content for tool in asked.tools]
    messages, variables = dialect.prompt(asked.messages, tools)
    return lease.model.tokenizer.render_chat(messages, **{**asked.variables, **variables}), dialect, tools


def _of_chat(lease: Lease, asked: Asked) -> Prepared:
    model, choice = lease.model, asked.tool_choice
    text, dialect, tools = _rendered(lease, asked)
    opened = opened_by(text)
    opening = dialect.opening(opened, choice.name) if choice.kind == "required" else ""
    model.require_room(text + opening)
    how = {"max_new_tokens": model.context, **asked.how}  # as many as there is room for
    ids = model.tokenizer.encode_plain(text + opening)
    task = None
    if opening:
        how.pop("json_schema", None)  # it is for what is said
        task = _calling(lease, asked, dialect, tools, ids, how)
    elif opened and "json_schema" in how:
        model.parameters({"json_schema": how["json_schema"]})  # told of by its name, if it is at fault
        how["grammar"] = after_thoughts(how.pop("json_schema"), model.tokenizer)
    task = task or model.task(ids, **how)
    over = dialect.one_call(opened, tools, opening) if choice.single and tools else None
    return Prepared(replace(task, decode=dialect.decode, over=over), text, dialect, tools, opened, opening)


def _calling(
    lease: Lease, asked: Asked, dialect: Dialect, tools: Tools, ids: list[int], how: Mapping[str, Any]
) -> Task | None:
    """With arguments that follow their schemas; None where these cannot be followed, or something else is to be. Raises
    FieldInvalid for one that is strict."""
    grammar = forced_calls(dialect, tools, asked.tool_choice, lease.model.tokenizer)
    if grammar is None or not _GUIDES.isdisjoint(how):
        return None
    try:
        return lease.model.task(ids, **how, grammar=grammar)
    except (GrammarInvalid, GuidanceMissing, TokenizerUnsuitable) as error:
        if is_strict(tools, asked.tool_choice):
            raise FieldInvalid(field="tools", reason=f"a strict one cannot be followed: {error}") from error
        return None


def _of_prompt(model: Model, prompt: str | tuple[int, ...], how: dict[str, Any]) -> Prepared:
    task = model.task(prompt, **how)
    return Prepared(task, prompt if isinstance(prompt, str) else _decoded(model, task.prompt.tolist()))


def _decoded(model: Model, ids: list[int]) -> str:
    return model.tokenizer.decode(ids) if model.has_tokenizer else ""


async def _events(model: Model, prepared: list[Prepared], results: int) -> AsyncGenerator[tuple[int, Event], None]:
    """Events of all prompts, with the index of their result among all."""
    tickets = [model.hand_in(each.task) for each in prepared]
    try:
        async with aclosing(_merged(tickets, results)) as events:
            async for index, event in events:
                yield index, event
    finally:
        if not all(ticket.done for ticket in tickets):  # a step is under way: pages are free after it
            asyncio.get_running_loop().run_in_executor(None, model.engine.settle)


async def _merged(tickets: list[Ticket], results: int) -> AsyncGenerator[tuple[int, Event], None]:
    if len(tickets) == 1:
        async with aclosing(aiter(tickets[0])) as events:
            async for event in events:
                yield event.index, event
        return
    queue: asyncio.Queue[tuple[int, Event] | BaseException | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(ticket, n * results, queue)) for n, ticket in enumerate(tickets)]
    try:
        left = len(tasks)
        while left:
            found = await queue.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                left -= 1
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait(tasks)


async def _pump(ticket: Ticket, first: int, queue: asyncio.Queue[tuple[int, Event] | BaseException | None]) -> None:
    """Puts the events of one ticket into the queue, and None after them or what ended them."""
    try:
        async with aclosing(aiter(ticket)) as events:
            async for event in events:
                queue.put_nowait((first + event.index, event))
        queue.put_nowait(None)
    except Exception as error:
        queue.put_nowait(error)


class _Choice:
    """One result: its events become deltas."""

    def __init__(self, index: int, prepared: Prepared, model: Model) -> None:
        self.index = index
        self.prepared = prepared
        self._tokenizer: Tokenizer | None = model.tokenizer if model.has_tokenizer else None
        self._reader = prepared.reader(index)
        self._thoughts = 0

    def nothing(self) -> Ended:
        """Of a prompt that is told alone."""
        size = self.prepared.task.prompt.size
        return self._ended(Generation("", (), "length", size, prompt_seconds=0.0, decode_seconds=0.0, steps=0))

    def deltas(self, event: Event) -> Iterator[Delta]:
        found: list[Part] = list(self._reader.push(event.text))
        if event.generation is not None:
            found += self._reader.flush()
        if event.token_id is not None and found and isinstance(found[-1], Thought):
            self._thoughts += 1
        if event.logprobs is not None and self._tokenizer is not None:
            yield from self._with_logprobs(found, event)
        else:
            yield from found
        if event.generation is not None:
            yield self._ended(event.generation)

    def _with_logprobs(self, found: list[Part], event: Event) -> Iterator[Delta]:
        """With the first text of the event, or with none."""
        assert event.logprobs is not None and self._tokenizer is not None
        told = (scored(self._tokenizer, event.logprobs),)
        at = next((n for n, delta in enumerate(found) if isinstance(delta, Text)), None)
        if at is None:
            yield from found
            yield Text(self.index, "", told)
            return
        first = found[at]
        assert isinstance(first, Text)
        yield from (*found[:at], Text(self.index, first.text, told), *found[at + 1 :])

    def _ended(self, generation: Generation) -> Ended:
        usage = Usage(
            prompt=generation.prompt_tokens,
            completion=len(generation.token_ids),
            cached=generation.cached_tokens,
            thoughts=self._thoughts,
        )
        return Ended(self.index, self._reason(generation), usage, generation, self._stop_string(generation))

    def _reason(self, generation: Generation) -> Reason:
        if generation.finish_reason == "stop":
            return "calls" if self._reader.called else "stop"
        return "cancelled" if generation.finish_reason == "cancelled" else "length"

    def _stop_string(self, generation: Generation) -> str | None:
        """The tokens go on to the end of it, the text does not."""
        task = self.prepared.task
        if generation.finish_reason != "stop" or not task.params.stop or task.decode is None:
            return None
        rest = task.decode(generation.token_ids)[len(generation.text) :]
        return next((stop for stop in task.params.stop if rest.startswith(stop)), None)


class _Clock:
    """Times of a request, for the metrics."""

    def __init__(self, meter: Meter, began: float) -> None:
        self._meter = meter
        self._began = began
        self._last: dict[int, float] = {}
        self._tokens: dict[int, int] = {}  # of results that go on

    def saw(self, index: int, event: Event) -> None:
        now = time.monotonic()
        if event.token_id is not None:
            before = self._last.get(index)
            if before is None:
                self._meter.first_token(now - self._began)
            else:
                self._meter.next_token(now - before)
            self._last[index] = now
            self._tokens[index] = self._tokens.get(index, 0) + 1
        if event.generation is not None:
            self._meter.ended(event.generation, now - self._began)
            self._tokens.pop(index, None)

    def left(self, prompts: list[int]) -> None:
        """prompts: tokens of each result's. One that had no token yet counts for nothing."""
        for index, tokens in self._tokens.items():
            self._meter.left(prompts[index], tokens)
