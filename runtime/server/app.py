"""The application: routes of all APIs behind the guard, and what lives as long as the server does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from dsv3c.runtime.errors import RuntimeFault
from dsv3c.runtime.server import page
from dsv3c.runtime.server.api import (
    anthropic_messages,
    llama_server,
    models,
    openai_chat,
    openai_completions,
    openai_responses,
)
from dsv3c.runtime.server.errors import MethodRefused, RouteUnknown
from dsv3c.runtime.server.guard import Guard, Keys
from dsv3c.runtime.server.logs import Access
from dsv3c.runtime.server.models import Models
from dsv3c.runtime.server.replies import ClientGone, Form, openai_form, refused
from dsv3c.runtime.server.service import Service
from dsv3c.runtime.server.settings import Settings

ROUTES: tuple[BaseRoute, ...] = (
    *models.routes,
    *openai_chat.routes,
    *openai_completions.routes,
    *openai_responses.routes,
    *anthropic_messages.routes,
    *llama_server.routes,
    *page.routes(),
)
# Of errors, by the beginning of a path; OpenAI's elsewhere.
FORMS: dict[str, Form] = {"/v1/messages": anthropic_messages.anthropic_form}
OPEN_BELOW: tuple[str, ...] = ("/page/",)  # folders that take no key
_THREADS = 32
Failed = Callable[[RuntimeFault], None]


def build(settings: Settings, served: Models, failed: Failed = lambda error: None) -> Starlette:
    """failed: told when the first model cannot be loaded at the start."""
    service = Service(settings, served)
    paths = frozenset(route.path for route in ROUTES if isinstance(route, Route))
    cors = [
        Middleware(
            CORSMiddleware, allow_origins=settings.cors, allow_methods=["GET", "POST", "DELETE"], allow_headers=["*"]
        )
        for _ in settings.cors[:1]
    ]
    app = Starlette(
        routes=list(ROUTES),
        middleware=[
            Middleware(Access, metrics=service.metrics, paths=paths),
            Middleware(Guard, settings=settings, refuse=_refuse),
            *cors,
            Middleware(Keys, keys=settings.keys, refuse=_refuse, open_below=OPEN_BELOW),
        ],
        exception_handlers={
            HTTPException: _no_route,
            RuntimeFault: _failed,
            ClientGone: _failed,
            ClientDisconnect: _failed,
            Exception: _failed,
        },
        lifespan=lambda app: _lifespan(service, failed),
    )
    app.state.service = service
    return app


@asynccontextmanager
async def _lifespan(service: Service, failed: Failed) -> AsyncIterator[None]:
    # Rendering and encoding wait for other threads and processes more than they compute.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "dsv3c-server"))
    tasks = [asyncio.create_task(service.models.watch())]
    if service.settings.artifacts:
        tasks.append(asyncio.create_task(_preload(service, failed)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await service.models.close()


async def _preload(service: Service, failed: Failed) -> None:
    try:
        await service.models.preload()
    except RuntimeFault as error:
        failed(error)


def _form(path: str) -> Form:
    return next((form for start, form in FORMS.items() if path.startswith(start)), openai_form)


def _refuse(path: str, error: Exception) -> Response:
    return refused(error, form=_form(path))


async def _failed(request: Request, error: Exception) -> Response:
    return _refuse(request.url.path, error)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    found = _refuse(request.url.path, MethodRefused() if error.status_code == 405 else RouteUnknown())
    found.headers.update(error.headers or {})
    return found
