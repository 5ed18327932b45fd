"""Runs the application with uvicorn: the socket, signals, the end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from dsv3c.runtime.errors import RuntimeFault
from dsv3c.runtime.server import logs
from dsv3c.runtime.server.app import build
from dsv3c.runtime.server.models import Models
from dsv3c.runtime.server.settings import Settings

log = logging.getLogger(__name__)
_HEADER_SECONDS = 20.0  # that a connection may take over the head of a request
_BEFORE = 0.05  # seconds by which the end of the grace is told sooner
_CONNECTIONS = 900  # a process has 1024 descriptors by default


class AddressTaken(RuntimeFault):
    message = "cannot listen on {host} port {port}: {reason}"
    hint = "give another --port, 0 for any that is free, or another --host"


def serve(settings: Settings) -> None:
    """Until a signal ends it. Raises AddressTaken, and what loading the first model raises."""
    logs.set_up(settings.log_json)
    opened = listen(settings.host, settings.port)
    failures: list[RuntimeFault] = []
    models = Models(settings)

    def failed(error: RuntimeFault) -> None:
        failures.append(error)
        server.should_exit = True

    server = Server(config(build(settings, models, failed), settings), models, settings.grace)
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    log.info("listening on http://%s:%d", shown, opened.getsockname()[1])
    with opened, server.capture_signals():  # already while the loop is made, which bears no exception
        asyncio.run(server.serve([opened]))
    if failures:
        raise failures[0]


def config(app: Starlette, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Patient,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=round(_HEADER_SECONDS),  # longer than clients keep a connection: they close it, not we
        timeout_graceful_shutdown=max(1, round(settings.grace)),
        limit_concurrency=_CONNECTIONS,
    )


class Server(uvicorn.Server):
    """The first SIGTERM or Ctrl-C lets running requests end within the grace, the second does not; neither is an
    error."""

    def __init__(self, config: uvicorn.Config, models: Models, grace: float) -> None:
        super().__init__(config)
        self._models = models
        self._grace = grace
        self._ending_since = 0.0

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Streams are cut off when the grace ends, and are no tasks then any more.
        left = self._ending_since + self._grace - _BEFORE - time.monotonic()
        told = asyncio.get_running_loop().call_later(max(0.0, left), self._tell_end_of_grace)
        try:
            await super().shutdown(sockets)
        finally:
            told.cancel()

    def _tell_end_of_grace(self) -> None:
        if self.server_state.tasks:
            running = len(self.server_state.tasks)
            log.warning("%g s of grace are over: the server leaves, %d requests are cut off", self._grace, running)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, cast(Any, handler))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self._ending_since = self._ending_since or time.monotonic()
        self.should_exit = True
        self._models.ending = True


class Patient(H11Protocol):
    """Closes a connection that does not bring the head of a request in time, however slowly it sends, or does not take
    the end of an answer."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._set_deadline()

    def _set_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(_HEADER_SECONDS, self._give_up)

    def _give_up(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and not self.transport.is_closing():
            self._set_deadline()
        else:  # a transport that closes has something left to send, perhaps for ever
            self.transport.abort()


def listen(host: str, port: int) -> socket.socket:
    """Raises AddressTaken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=512)
    except socket.gaierror as error:  # its numbers are not those of errno
        raise AddressTaken(host=host, port=port, reason=error.strerror) from None
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        raise AddressTaken(host=host, port=port, reason=os.strerror(number) if number else error) from None
