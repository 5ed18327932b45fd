"""Answers over HTTP: JSON, streams of events, and refusals in the form of the API that was called."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from dsv3c.runtime.errors import RuntimeFault, place_of
from dsv3c.runtime.server.asked import Asked
from dsv3c.runtime.server.deltas import Begun, Deltas
from dsv3c.runtime.server.errors import Told, told
from dsv3c.runtime.server.service import service_of

log = logging.getLogger(__name__)
Found = TypeVar("Found")
Teller = TypeVar("Teller")
Form = Callable[[Told], dict[str, Any]]  # an error as an API has it
Events = AsyncGenerator[ServerSentEvent, None]
CLIENT_GONE = 499  # as others log it; nobody reads it


def openai_form(error: Told) -> dict[str, Any]:
    return {"error": {"message": error.message, "type": error.kind, "param": error.field, "code": error.code}}


def refusal(error: Told, form: Form = openai_form) -> JSONResponse:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(form(error), error.status, headers)


def refused(error: Exception, fields: Mapping[str, str] = {}, form: Form = openai_form) -> Response:
    """The answer to a request that failed before its answer began."""
    if isinstance(error, ClientGone | ClientDisconnect):
        return Response(status_code=CLIENT_GONE)
    return refusal(told_and_logged(error, fields), form)


def told_and_logged(error: Exception, fields: Mapping[str, str] = {}) -> Told:
    """As `told`; what is this side's fault is logged. The text of an exception that is none of ours may have some of
    the body, so its class is logged, and where it came from."""
    found = told(error, fields)
    if found.status >= 500:
        log.error("%s", error if isinstance(error, RuntimeFault) else place_of(error))
    return found


def event(data: Mapping[str, Any] | str, name: str | None = None) -> ServerSentEvent:
    """data: a text as it is, else JSON."""
    text = data if isinstance(data, str) else dumps(data)
    return ServerSentEvent(text, event=name, sep="\n")


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


async def answered(
    request: Request,
    asked: Asked,
    streams: bool | None,
    begin: Callable[[Begun], Teller],
    whole: Callable[[Deltas, Teller], Awaitable[Any]],
    events: Callable[[Deltas, Teller], Events],
    form: Form = openai_form,
) -> Response:
    """What comes of a request, as JSON or, if it streams, as events. begin: makes who tells of it, once it is known
    that nothing is wrong with it: a request that is at fault is refused with a status, not within a stream."""
    deltas = service_of(request).answer(asked)
    try:
        first = await while_connected(request, lambda: anext(deltas))
        assert isinstance(first, Begun)
        teller = begin(first)
        if streams:
            return stream(request, events(deltas, teller))
        async with aclosing(deltas):
            return JSONResponse(await while_connected(request, lambda: whole(deltas, teller)))
    except Exception as error:
        return refused(error, asked.fields, form)


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def while_connected(request: Request, work: Callable[[], Awaitable[Found]]) -> Found:
    """What the work comes to; it is cancelled when the client goes away: raises ClientGone. The body has to be read."""
    found: list[Found] = []
    failed: list[Exception] = []

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        try:
            found.append(await work())
        except Exception as error:  # by itself, not in a group of one
            failed.append(error)
        group.cancel_scope.cancel()
    if failed:
        raise failed[0]
    if not found:
        raise ClientGone
    return found[0]


def stream(request: Request, events: Events) -> Response:
    """Events as they come, with comments while there are none. events: ends by itself, also after a fault."""
    settings = service_of(request).settings
    return EventSourceResponse(
        _closing(events),
        ping=settings.ping,
        ping_message_factory=lambda: ServerSentEvent(comment="keep-alive", sep="\n"),
        sep="\n",
        send_timeout=settings.send_seconds,
        shutdown_grace_period=settings.grace,
    )


async def _closing(events: Events) -> Events:
    async with aclosing(events):
        async for each in events:
            yield each
