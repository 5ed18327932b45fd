"""The page at `/`: its files, read once from the package, and what a browser may do with them.

Its scripts are files of this server and get nothing from elsewhere; a browser that knows trusted types refuses every
way from a text to markup.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again, and not sent where it is the same
}
_MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_INDEX = "index.html"


@dataclass(frozen=True)
class Asset:
    content: bytes
    media: str
    etag: str

    def answer(self, request: Request) -> Response:
        headers = {**_HEADERS, "ETag": self.etag}
        if request.headers.get("if-none-match") == self.etag:
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media)


def assets() -> Mapping[str, Asset]:
    """The files of the page by their names."""
    found = {}
    for file in files(__name__).iterdir():
        suffix = "." + file.name.rpartition(".")[2]
        if suffix in _MEDIA:
            content = file.read_bytes()
            found[file.name] = Asset(content, _MEDIA[suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


def routes() -> list[BaseRoute]:
    """`/` and `/page/NAME`. They say nothing of models, so they need no key: the page asks for one."""
    known = assets()

    def serving(asset: Asset) -> Callable[[Request], Awaitable[Response]]:
        async def serve(request: Request) -> Response:
            return asset.answer(request)

        return serve

    return [
        Route("/", serving(known[_INDEX])),
        *(Route(f"/page/{name}", serving(asset)) for name, asset in known.items() if name != _INDEX),
    ]
