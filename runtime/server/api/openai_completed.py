"""How both of OpenAI's APIs of completions answer, of chats and of texts: whole, or as chunks of a stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from dsv3c.runtime.server.asked import Asked
from dsv3c.runtime.server.deltas import Deltas
from dsv3c.runtime.server.fields import Body, read_body
from dsv3c.runtime.server.replies import Events, answered, event, openai_form, told_and_logged
from dsv3c.runtime.server.service import service_of


class Reply(Protocol):
    """What all chunks of an answer have in common. with_usage: whether a chunk of its own about usage ends a stream."""

    with_usage: bool

    def chunks(self, delta: Any) -> Iterable[dict[str, Any]]: ...

    def last(self) -> dict[str, Any]:
        """About usage."""


Made = TypeVar("Made", bound=Reply)


async def completed(
    request: Request,
    asked_of: Callable[[Body], Asked],
    reply_of: Callable[[str, bool, int], Made],
    whole: Callable[[Deltas, Made], Awaitable[dict[str, Any]]],
) -> Response:
    """reply_of: of the model's name, whether usage is to be told in a stream, and the tokens of all prompts."""
    body = await read_body(request)
    asked, usage = asked_of(body), _with_usage(body)
    name = service_of(request).models.find(asked.model).name
    return await answered(
        request,
        asked,
        body.flag("stream"),
        lambda first: reply_of(name, usage, sum(first.prompt_tokens)),
        whole,
        lambda deltas, reply: _events(deltas, reply, asked.fields),
    )


def _with_usage(body: Body) -> bool:
    options = body.inner("stream_options")
    return options is not None and bool(options.flag("include_usage"))


async def _events(deltas: Deltas, reply: Reply, fields: Mapping[str, str]) -> Events:
    async with aclosing(deltas):
        try:
            async for delta in deltas:
                for chunk in reply.chunks(delta):
                    yield event({**chunk, "usage": None} if reply.with_usage else chunk)
        except Exception as error:
            yield event(openai_form(told_and_logged(error, fields)))
            return
    if reply.with_usage:
        yield event(reply.last())
    yield event("[DONE]")
