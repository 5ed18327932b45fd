"""A server on this machine that speaks as much of a hub's API as a checkpoint needs, rightly or wrongly."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS = (".safetensors", ".bin", ".model")


class Hub:
    """files: of the one repository org/model. redirects: where LFS files lead, instead of to /cdn. asked: name and
    range of each request. status, code: of every answer about the repository; moved: where it leads instead.

    Faults, by name of a file: `wrong` sends other bytes, `cut` breaks off after so many bytes, once for each that is
    listed, `short` answers with half of the range.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = dict(files)
        self.redirects: dict[str, str] = {}
        self.wrong: set[str] = set()
        self.cut: dict[str, list[int]] = {}
        self.short: set[str] = set()
        self.status: int | None = None
        self.code = ""
        self.moved = ""
        self.changes: dict[str, Any] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.tokens: list[tuple[str, str | None]] = []
        self.url = ""

    def info(self) -> dict[str, Any]:
        siblings = [self._sibling(name, data) for name, data in self.files.items()]
        return {"id": "org/model", "sha": COMMIT, "private": False, "tags": [], "siblings": siblings, **self.changes}

    def _sibling(self, name: str, data: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        found: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
        if name.endswith(LFS):
            found["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return found


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """The address of a server for it, which ends with the context."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *given: object) -> None:
            return

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.tokens.append((path, self.headers.get("Authorization")))
            if path.startswith("/api/models/"):
                hub.asked.append((path, None))
                return self._api(path)
            name = path.split(f"/resolve/{COMMIT}/")[-1].removeprefix("/cdn/")
            hub.asked.append((name, self.headers.get("Range")))
            if name not in hub.files:
                return self._answer(404, b"")
            if name.endswith(LFS) and not path.startswith("/cdn/"):
                return self._answer(302, b"", Location=hub.redirects.get(name, f"/cdn/{quote(name)}"))
            return self._file(name)

        def _api(self, path: str) -> None:
            known = path in ("/api/models/org/model", f"/api/models/org/model/revision/{COMMIT}") or path.endswith(
                "/main"
            )
            if hub.moved:
                return self._answer(307, b"", Location=hub.moved + path)
            if hub.status is not None:
                return self._answer(hub.status, b"{}", **{"X-Error-Code": hub.code})
            if not path.startswith("/api/models/org/model"):
                return self._answer(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
            if not known:
                return self._answer(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})
            self._answer(200, json.dumps(hub.info()).encode(), **{"Content-Type": "application/json"})

        def _file(self, name: str) -> None:
            data = hub.files[name]
            data = bytes(byte ^ 1 for byte in data) if name in hub.wrong else data
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            if match is None:
                return self._answer(200, data)
            first, last = int(match[1]), min(int(match[2]), len(data) - 1)
            last = first + (last - first) // 2 if name in hub.short else last
            ranged = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
            stop = hub.cut[name].pop(0) if hub.cut.get(name) else None
            self._answer(206, data[first : last + 1], stop, **ranged)

        def _answer(self, status: int, body: bytes, stop: int | None = None, **headers: str) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:stop])
            self.close_connection = stop is not None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub.url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
