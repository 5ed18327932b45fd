"""GET /v1/models, as OpenAI's API has it."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dsv3c.runtime.server.models import Served
from dsv3c.runtime.server.service import service_of


async def models(request: Request) -> Response:
    found = service_of(request).models
    found.scan()
    return JSONResponse({"object": "list", "data": [_model(served) for served in found]})


async def model(request: Request) -> Response:
    return JSONResponse(_model(service_of(request).models.find(request.path_params["name"])))


def _model(served: Served) -> dict[str, Any]:
    found = {"id": served.name, "object": "model", "created": served.created, "owned_by": "dsv3c"}
    status: dict[str, Any] = {"value": served.state}
    if served.loaded is None:
        return {**found, "status": status}
    loaded = served.loaded.model
    size = {"n_ctx": loaded.context, "n_ctx_train": loaded.artifact.plan.context, "n_vocab": loaded.session.vocab_size}
    return {**found, "status": status, "meta": size}


routes = [Route("/v1/models", models), Route("/v1/models/{name:path}", model)]
