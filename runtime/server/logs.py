"""Lines of the log, for people or as JSON; a request is one line, which has nothing of its body and no key."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dsv3c.runtime.artifact.strict_json import quote
from dsv3c.runtime.server.metrics import Metrics

access = logging.getLogger("dsv3c.runtime.server.access")
_OURS = "dsv3c.runtime.server"


class People(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return f"{self.formatTime(record, '%H:%M:%S')} {level}{record.getMessage()}"


class Machines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {"time": round(record.created, 3), "level": record.levelname.lower()}
        request = getattr(record, "request", None)
        fields |= request if isinstance(request, dict) else {"message": record.getMessage()}
        return json.dumps(fields, ensure_ascii=False)


def set_up(as_json: bool) -> None:
    """Logs of this process go to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Machines() if as_json else People())
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.getLogger(_OURS).setLevel(logging.INFO)
    # What they say of a failed request, with its traceback, is said here without.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


class Access:
    """Logs and counts requests. paths: known ones; a client may invent any other."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            self._tell(scope, status, time.monotonic() - began)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        path: str = scope["path"]
        known = path in self._paths
        self._metrics.requests.labels(path if known else "other", str(status)).inc()
        client = scope["client"][0] if scope.get("client") else "-"
        shown = path if known else quote(path)
        request = {
            "method": scope["method"],
            "path": shown,
            "status": status,
            "seconds": round(seconds, 3),
            "client": client,
        }
        text = f"{client} {scope['method']} {shown} {status} in {seconds:.3f} s"
        access.info(text, extra={"request": request})
