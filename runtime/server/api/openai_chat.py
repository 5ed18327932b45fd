"""POST /v1/chat/completions, as OpenAI's API has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dsv3c.runtime.server.api.experts import experts_of
from dsv3c.runtime.server.api.messages import messages_of
from dsv3c.runtime.server.api.openai_completed import completed
from dsv3c.runtime.server.api.openai_parts import FINISH, new_id, now, scored_json, timings_of, usage_of
from dsv3c.runtime.server.api.sampling import MOST_TOP_LOGPROBS, how_of, length_of
from dsv3c.runtime.server.api.tools import chosen_of, tools_of
from dsv3c.runtime.server.asked import Asked
from dsv3c.runtime.server.deltas import (
    Begun,
    CallArguments,
    CallBegun,
    Delta,
    Deltas,
    Ended,
    Scored,
    Text,
    Thought,
    Usage,
)
from dsv3c.runtime.server.errors import FeatureMissing
from dsv3c.runtime.server.fields import Body

_MISSING = {
    "functions": "they are given as tools",
    "function_call": "there is tool_choice",
    "audio": "the server answers in text",
    "web_search_options": "this server runs no tools of its own",
}
_MOST_MODALITIES = 8
_OWN_VARIABLES = ("self", "messages", "tools")


def asked_of(body: Body) -> Asked:
    """Raises FieldInvalid, FieldMissing, FeatureMissing."""
    _require_none_missing(body)
    how, fields = how_of(body)
    length, where = length_of(body, "max_completion_tokens", "max_tokens")
    if length is not None:
        how["max_new_tokens"] = length
    top = body.integer("top_logprobs", 0, MOST_TOP_LOGPROBS)
    if body.flag("logprobs"):
        how["logprobs"] = top or 0
    elif top:
        raise body.wrong("top_logprobs", "it goes with logprobs: true")
    fields |= {"max_new_tokens": where, "logprobs": "top_logprobs", "prompt": "messages"}
    tools, choice = chosen_of(body, tools_of(body))
    return Asked(
        model=body.text("model"),
        messages=messages_of(body),
        how=how,
        tools=tools,
        tool_choice=choice,
        variables=_variables(body),
        fields=fields,
    )


def _require_none_missing(body: Body) -> None:
    for name, reason in _MISSING.items():
        if name in body:
            raise FeatureMissing(field=body.where(name), what="this", reason=reason)
    if set(body.texts("modalities", _MOST_MODALITIES) or ()) - {"text"}:
        raise FeatureMissing(field=body.where("modalities"), what="another than text", reason=_MISSING["audio"])


def _variables(body: Body) -> dict[str, Any]:
    given = body.inner("chat_template_kwargs")
    found = {} if given is None else dict(given.values)
    if given is not None:
        for name in _OWN_VARIABLES:
            if name in found:
                raise given.wrong(name, "it is no variable of its own")
    effort = body.text("reasoning_effort")
    return found if effort is None else {"reasoning_effort": effort, **found}


async def chat_completions(request: Request) -> Response:
    return await completed(request, asked_of, _Reply, _collect)


@dataclass
class _Choice:
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    logprobs: list[Scored] = field(default_factory=list)
    ended: Ended | None = None

    def take(self, delta: Delta) -> None:
        if isinstance(delta, Text):
            self.texts.append(delta.text)
            self.logprobs += delta.logprobs
        elif isinstance(delta, Thought):
            self.thoughts.append(delta.text)
        elif isinstance(delta, CallBegun):
            function = {"name": delta.name, "arguments": ""}
            self.calls[delta.number] = {"id": delta.id, "type": "function", "function": function}
        elif isinstance(delta, CallArguments):
            self.calls[delta.number]["function"]["arguments"] += delta.text
        elif isinstance(delta, Ended):
            self.ended = delta


@dataclass
class _Reply:
    """As `Reply`. begun: results that were told of already."""

    model: str
    with_usage: bool
    prompt_tokens: int
    id: str = field(default_factory=lambda: new_id("chatcmpl"))
    created: int = field(default_factory=now)
    usages: list[Usage] = field(default_factory=list)
    begun: set[int] = field(default_factory=set)

    def whole(self, choices: Mapping[int, _Choice]) -> dict[str, Any]:
        listed = [_choice_json(index, choices[index]) for index in sorted(choices)]
        ended = [choice.ended for choice in choices.values() if choice.ended is not None]
        timings = timings_of(ended[0].generation) if ended else None
        return {**self._head("chat.completion"), "choices": listed, "usage": self._usage(), "timings": timings}

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        assert not isinstance(delta, Begun)
        if delta.index not in self.begun:
            self.begun.add(delta.index)
            yield self.chunk(delta.index, {"role": "assistant", "content": ""})
        yield _chunk(delta, self)

    def chunk(self, index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def last(self) -> dict[str, Any]:
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _usage(self) -> dict[str, Any]:
        return usage_of(self.prompt_tokens, self.usages)


async def _collect(deltas: Deltas, reply: _Reply) -> dict[str, Any]:
    choices: dict[int, _Choice] = {}
    async for delta in deltas:
        assert not isinstance(delta, Begun)
        choices.setdefault(delta.index, _Choice()).take(delta)
        if isinstance(delta, Ended):
            reply.usages.append(delta.usage)
    return reply.whole(choices)


def _choice_json(index: int, choice: _Choice) -> dict[str, Any]:
    text = "".join(choice.texts)
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if choice.calls else ""), "refusal": None}
    if choice.thoughts:
        message["reasoning_content"] = "".join(choice.thoughts)
    if choice.calls:
        message["tool_calls"] = [choice.calls[number] for number in sorted(choice.calls)]
    logprobs = {"content": [scored_json(token) for token in choice.logprobs]} if choice.logprobs else None
    reason = FINISH[choice.ended.reason] if choice.ended is not None else None
    found = {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}
    return {**found, **experts_of(choice.ended)}


def _chunk(delta: Delta, reply: _Reply) -> dict[str, Any]:
    if isinstance(delta, Text):
        logprobs = {"content": [scored_json(token) for token in delta.logprobs]} if delta.logprobs else None
        return reply.chunk(delta.index, {"content": delta.text}, logprobs=logprobs)
    if isinstance(delta, Thought):
        return reply.chunk(delta.index, {"reasoning_content": delta.text})
    if isinstance(delta, CallBegun):
        function = {"name": delta.name, "arguments": ""}
        call = {"index": delta.number, "id": delta.id, "type": "function", "function": function}
        return reply.chunk(delta.index, {"tool_calls": [call]})
    if isinstance(delta, CallArguments):
        call = {"index": delta.number, "function": {"arguments": delta.text}}
        return reply.chunk(delta.index, {"tool_calls": [call]})
    assert isinstance(delta, Ended)
    reply.usages.append(delta.usage)
    found = reply.chunk(delta.index, {}, finish_reason=FINISH[delta.reason], **experts_of(delta))
    return {**found, "timings": timings_of(delta.generation)}


routes = [Route("/v1/chat/completions", chat_completions, methods=["POST"])]
