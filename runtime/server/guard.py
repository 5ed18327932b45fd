"""Who may talk to the server, and how long a request may be or take. Middleware of ASGI, around all APIs.

The order from the outside: `Guard` (names and origins, bodies, headers of every answer), CORS where it was asked for,
whose preflights bring no key, and `Keys`.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dsv3c.runtime.server.errors import (
    BodyTooLarge,
    BodyTooSlow,
    HostRefused,
    KeyMissing,
    KeyWrong,
    OriginRefused,
    ServerFault,
)
from dsv3c.runtime.server.settings import Settings, is_loopback

Refuse = Callable[[str, Exception], Response]  # the answer to a fault, in the form of the API at that path
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
_OPEN = ("/", "/health", "/v1/health")  # what is told to everybody; the page asks for the key itself


class Guard:
    def __init__(self, app: ASGIApp, settings: Settings, refuse: Refuse) -> None:
        self._app = app
        self._settings = settings
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        guarded = _with_headers(send)
        fault = self._fault(headers)
        if fault is not None:
            await self._refuse(scope["path"], fault)(scope, receive, guarded)
            return
        body = _Bounded(receive, self._settings)
        await self._app(scope, body.receive, guarded)

    def _fault(self, headers: Headers) -> ServerFault | None:
        length = headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > self._settings.body_limit:
            return BodyTooLarge(limit=self._settings.body_limit)
        if not self._settings.loopback:
            return None
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_loopback(_hostname(f"//{host}")):
            return HostRefused()
        if origin is None or origin == f"http://{host}" or {origin, "*"} & set(self._settings.cors):
            return None
        return OriginRefused()


class Keys:
    """Lets in who has one of the keys."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], refuse: Refuse, open_below: Sequence[str] = ()) -> None:
        """open_below: folders that are open to all."""
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._refuse = refuse
        self._open_below = tuple(open_below)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._fault(scope) if scope["type"] == "http" else None
        if fault is None:
            await self._app(scope, receive, send)
        else:
            await self._refuse(scope["path"], fault)(scope, receive, send)

    def _fault(self, scope: Scope) -> ServerFault | None:
        path: str = scope["path"]
        if not self._keys or path in _OPEN or path.startswith(self._open_below):
            return None
        headers = Headers(scope=scope)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not given:
            return KeyMissing()
        # All of them, whichever it is: the time tells nothing of the keys.
        same = [hmac.compare_digest(given.encode(), known) for known in self._keys]
        return None if any(same) else KeyWrong()


class _Bounded:
    """The body of a request: so many bytes, within so many seconds. Raises BodyTooLarge, BodyTooSlow."""

    def __init__(self, receive: Receive, settings: Settings) -> None:
        self._receive = receive
        self._settings = settings
        self._until = time.monotonic() + settings.body_seconds
        self._size = 0
        self._whole = False

    async def receive(self) -> Message:
        if self._whole:  # what comes now is that the client goes away
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._until - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise BodyTooSlow(seconds=self._settings.body_seconds) from None
        self._size += len(message.get("body", b""))
        if self._size > self._settings.body_limit:
            raise BodyTooLarge(limit=self._settings.body_limit)
        self._whole = not message.get("more_body", False)
        return message


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            if message["status"] == BodyTooSlow.status:
                headers["Connection"] = "close"
        await send(message)

    return sending


def _hostname(url: str) -> str:
    """Empty for what is none, or names a user besides."""
    try:
        found = urlsplit(url)
        return "" if "@" in found.netloc else found.hostname or ""
    except ValueError:
        return ""
