"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic's API has them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dsv3c.runtime.server.answering import prompt_tokens
from dsv3c.runtime.server.api.anthropic_events import Event, MessageWriter
from dsv3c.runtime.server.api.anthropic_parts import messages_of, system_of, tool_choice_of, tools_of
from dsv3c.runtime.server.api.sampling import MOST_STOPS, how_of
from dsv3c.runtime.server.asked import Asked
from dsv3c.runtime.server.deltas import Deltas
from dsv3c.runtime.server.errors import BROKEN, FeatureMissing, Told
from dsv3c.runtime.server.fields import Body, read_body
from dsv3c.runtime.server.replies import Events, answered, event, refused, told_and_logged
from dsv3c.runtime.server.service import service_of

# Parameters by names that mean the same here as with OpenAI, most of them the engine's own.
_SHARED = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "no_repeat_ngram_size", "logit_bias", "ignore_eos", "max_time", "grammar", "regex",
)  # fmt: skip


def anthropic_form(error: Told) -> dict[str, Any]:
    kind = error.kind
    if kind == BROKEN:
        kind = "overloaded_error" if error.status == 503 else "api_error"
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def asked_of(body: Body) -> Asked:
    """Raises FieldInvalid, FieldMissing, FeatureMissing."""
    asked = _conversation(body)
    if asked.messages[-1]["role"] == "assistant":
        raise body.wrong(
            f"messages[{len(body.values['messages']) - 1}].role", "an answer cannot be begun for the model"
        )
    length = body.integer("max_tokens", 1, 1 << 31)
    if length is None:
        raise body.missing("max_tokens", "an integer")
    how, fields = how_of(Body({name: body.values[name] for name in _SHARED if name in body}))
    how["max_new_tokens"] = length
    stops = body.texts("stop_sequences", MOST_STOPS)
    if stops:
        how["stop"] = stops
    schema = _schema(body)
    if schema is not None:
        how["json_schema"] = schema.values
        fields["json_schema"] = schema.path
    named = {"max_new_tokens": "max_tokens", "stop": "stop_sequences", "prompt": "messages"}
    return replace(asked, how=how, fields={**fields, **named})


def _conversation(body: Body) -> Asked:
    tools = tools_of(body)
    return Asked(
        model=body.text("model"),
        messages=(*system_of(body), *messages_of(body)),
        tools=tools,
        tool_choice=tool_choice_of(body, tools),
        variables=_thinking(body),
        fields={"prompt": "messages"},
    )


def _thinking(body: Body) -> dict[str, Any]:
    """Templates call it by one name or the other."""
    wanted = body.inner("thinking")
    kind = None if wanted is None else wanted.choice("type", ("enabled", "adaptive", "disabled"))
    if wanted is None:
        return {}
    if kind is None:
        raise wanted.missing("type", "enabled, adaptive or disabled")
    wanted.integer("budget_tokens", 1, 1 << 31)
    return {"thinking": kind != "disabled", "enable_thinking": kind != "disabled"}


def _schema(body: Body) -> Body | None:
    config = body.inner("output_config")
    wanted = None if config is None else config.inner("format")
    if wanted is None:
        return None
    if wanted.text("type") != "json_schema":
        raise FeatureMissing(field=wanted.where("type"), what="another format", reason="there is json_schema")
    schema = wanted.inner("schema")
    if schema is None:
        raise wanted.missing("schema", "a JSON schema")
    return schema


async def messages(request: Request) -> Response:
    body = await read_body(request)
    asked = asked_of(body)
    name = service_of(request).models.find(asked.model).name
    return await answered(
        request,
        asked,
        body.flag("stream"),
        lambda first: MessageWriter(name, sum(first.prompt_tokens)),
        _collect,
        lambda deltas, writer: _events(deltas, writer, asked.fields),
        anthropic_form,
    )


async def count_tokens(request: Request) -> Response:
    asked = _conversation(await read_body(request))
    try:
        async with service_of(request).models.lease(asked.model) as lease:
            return JSONResponse({"input_tokens": await asyncio.to_thread(prompt_tokens, lease, asked)})
    except Exception as error:
        return refused(error, asked.fields, anthropic_form)


async def _collect(deltas: Deltas, writer: MessageWriter) -> dict[str, Any]:
    async for delta in deltas:
        writer.take(delta)
    return writer.message


async def _events(deltas: Deltas, writer: MessageWriter, fields: Mapping[str, str]) -> Events:
    def named(found: Event) -> Any:
        return event(found, found["type"])

    for each in writer.start():
        yield named(each)
    async with aclosing(deltas):
        try:
            async for delta in deltas:
                for each in writer.take(delta):
                    yield named(each)
        except Exception as error:
            yield named(anthropic_form(told_and_logged(error, fields)))


routes = [
    Route("/v1/messages", messages, methods=["POST"]),
    Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
]
