"""/v1/responses, as OpenAI's API has it: stateless, or going on with one that is remembered."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dsv3c.runtime.server.api.openai_response_events import ResponseWriter
from dsv3c.runtime.server.api.openai_response_items import input_of, output_messages, tools_of
from dsv3c.runtime.server.api.sampling import MOST_TOP_LOGPROBS, how_of
from dsv3c.runtime.server.asked import Asked, Messages
from dsv3c.runtime.server.deltas import Deltas
from dsv3c.runtime.server.errors import FeatureMissing, ResponseUnknown
from dsv3c.runtime.server.fields import Body, read_body
from dsv3c.runtime.server.remembered import Kept, Remembered
from dsv3c.runtime.server.replies import Events, answered, event, told_and_logged
from dsv3c.runtime.server.service import service_of

# Parameters by names that mean the same as in chats, most of them the engine's own.
_SHARED = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "presence_penalty", "frequency_penalty", "stop",
    "repetition_penalty", "no_repeat_ngram_size", "logit_bias", "ignore_eos", "max_time", "grammar", "regex",
)  # fmt: skip
_MISSING = ("background", "conversation", "prompt")
_FORMATS = ("text", "json_object", "json_schema")
_LOGPROBS = "message.output_text.logprobs"
_MOST_INCLUDED = 32


def asked_of(body: Body, before: Messages) -> Asked:
    """before: messages of the responses that it goes on with. Raises FieldInvalid, FieldMissing, FeatureMissing."""
    for name in _MISSING:
        if body.values.get(name):
            raise FeatureMissing(
                field=name, what="this", reason="the server keeps responses alone, and answers at once"
            )
    if body.choice("truncation", ("auto", "disabled")) == "auto":
        raise FeatureMissing(field="truncation", what="auto", reason="a conversation is read as a whole")
    how, fields = _how(body)
    tools, choice = tools_of(body)
    said = [*before, *input_of(body)]
    if not said:
        raise body.wrong("input", "it must have at least one item")
    return Asked(
        model=body.text("model"),
        messages=(*_instructions(body), *said),
        how=how,
        tools=tools,
        tool_choice=choice,
        variables=_variables(body),
        fields=fields,
    )


def _how(body: Body) -> tuple[dict[str, Any], dict[str, str]]:
    how, fields = how_of(Body({name: body.values[name] for name in _SHARED if name in body}))
    length = body.integer("max_output_tokens", 1, 1 << 31)
    if length is not None:
        how["max_new_tokens"] = length
    top = body.integer("top_logprobs", 0, MOST_TOP_LOGPROBS)
    if top or _LOGPROBS in (body.texts("include", _MOST_INCLUDED) or ()):
        how["logprobs"] = top or 0
    schema, where = _schema(body)
    if schema is not None:
        how["json_schema"] = schema
    named = {"max_new_tokens": "max_output_tokens", "logprobs": "top_logprobs", "prompt": "input", "json_schema": where}
    return how, {**fields, **named}


def _schema(body: Body) -> tuple[Mapping[str, Any] | None, str]:
    config = body.inner("text")
    wanted = None if config is None else config.inner("format")
    kind = None if wanted is None else wanted.choice("type", _FORMATS)
    if wanted is None or kind == "text":
        return None, "text.format"
    if kind is None:
        raise wanted.missing("type", ", ".join(_FORMATS))
    if kind == "json_object":
        return {"type": "object"}, wanted.path
    schema = wanted.inner("schema")
    if schema is None:
        raise wanted.missing("schema", "a JSON schema")
    return schema.values, schema.path


def _instructions(body: Body) -> Messages:
    text = body.text("instructions")
    return ({"role": "system", "content": text},) if text else ()


def _variables(body: Body) -> dict[str, Any]:
    """Templates ask whether to think, by one name or the other, or how much."""
    reasoning = body.inner("reasoning")
    effort = None if reasoning is None else reasoning.text("effort")
    if effort is None:
        return {}
    thinks = effort != "none"
    return {"reasoning_effort": effort, "thinking": thinks, "enable_thinking": thinks}


def _head(body: Body, model: str) -> dict[str, Any]:
    """What a response repeats of its request."""
    config = body.inner("text")
    wanted = None if config is None else config.values.get("format")
    reasoning = body.inner("reasoning")
    effort = None if reasoning is None else reasoning.text("effort")
    metadata, tools = body.inner("metadata"), body.entries("tools", 1 << 20)
    parallel = body.flag("parallel_tool_calls")
    return {
        "model": model,
        "instructions": body.text("instructions"),
        "max_output_tokens": body.values.get("max_output_tokens"),
        "metadata": {} if metadata is None else metadata.values,
        "parallel_tool_calls": parallel is not False,
        "previous_response_id": body.text("previous_response_id"),
        "reasoning": {"effort": effort, "summary": None},
        "store": body.flag("store") is not False,
        "temperature": body.values.get("temperature"),
        "text": {"format": wanted or {"type": "text"}},
        "tool_choice": body.values.get("tool_choice") or "auto",
        "tools": tools or [],
        "top_p": body.values.get("top_p"),
        "truncation": "disabled",
    }


async def create(request: Request) -> Response:
    body = await read_body(request)
    service = service_of(request)
    asked = asked_of(body, _before(service.remembered, body))
    writer = ResponseWriter(_head(body, service.models.find(asked.model).name))
    end = _End(service.remembered, writer, asked.messages[len(_instructions(body)) :])
    return await answered(
        request,
        asked,
        body.flag("stream"),
        lambda first: end,
        _collect,
        lambda deltas, end: _events(deltas, end, asked.fields),
    )


class _End:
    """Keeps the response, if it is to be."""

    def __init__(self, remembered: Remembered, writer: ResponseWriter, messages: Messages) -> None:
        self.writer = writer
        self._remembered, self._messages = remembered, messages

    def keep(self) -> None:
        response = self.writer.response
        if response["store"]:
            said = output_messages(response["output"])
            self._remembered.keep(Kept(response, (*self._messages, *said)))


def _before(remembered: Remembered, body: Body) -> Messages:
    name = body.text("previous_response_id")
    if name is None:
        return ()
    found = remembered.find(name)
    if found is None:
        raise body.wrong("previous_response_id", "there is no such response, or it is not remembered any more")
    return found.messages


async def _collect(deltas: Deltas, end: _End) -> dict[str, Any]:
    async for delta in deltas:
        end.writer.take(delta)
    end.keep()
    return end.writer.response


async def _events(deltas: Deltas, end: _End, fields: Mapping[str, str]) -> Events:
    writer = end.writer
    for each in writer.start():
        yield event(each, each["type"])
    async with aclosing(deltas):
        try:
            async for delta in deltas:
                for each in writer.take(delta):
                    if each["type"] in ("response.completed", "response.incomplete"):
                        end.keep()  # before who reads of it goes on with it
                    yield event(each, each["type"])
        except Exception as error:
            for each in writer.failed(told_and_logged(error, fields)):
                yield event(each, each["type"])


async def retrieve(request: Request) -> Response:
    found = service_of(request).remembered.find(request.path_params["name"])
    if found is None:
        raise ResponseUnknown()
    return JSONResponse(found.response)


async def delete(request: Request) -> Response:
    name = request.path_params["name"]
    if not service_of(request).remembered.forget(name):
        raise ResponseUnknown()
    return JSONResponse({"id": name, "object": "response", "deleted": True})


routes = [
    Route("/v1/responses", create, methods=["POST"]),
    Route("/v1/responses/{name}", retrieve, methods=["GET"]),
    Route("/v1/responses/{name}", delete, methods=["DELETE"]),
]
