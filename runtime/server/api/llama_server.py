"""What llama-server has besides OpenAI's API: health, properties, slots, tokens, metrics."""

from __future__ import annotations

import asyncio
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dsv3c.runtime.server.errors import ModelLoading
from dsv3c.runtime.server.fields import read_body
from dsv3c.runtime.server.models import Served
from dsv3c.runtime.server.service import service_of
from dsv3c.runtime.server.token_texts import token_bytes

MOST_TOKENS = 1 << 20


async def health(request: Request) -> Response:
    """Whether requests are answered; of several models the worst of those that were asked for."""
    models = list(service_of(request).models)
    broken = {served.name: served.fault for served in models if served.fault is not None}
    faults = {"faults": sum(served.faults for served in models)}
    if broken:
        return JSONResponse({"status": "error", "models": broken, **faults}, 503)
    if models and not any(served.loaded for served in models) and any(served.loading for served in models):
        error = {"code": 503, "message": str(ModelLoading()), "type": "unavailable_error"}
        return JSONResponse({"status": "loading model", "error": error}, 503)
    return JSONResponse({"status": "ok", **faults})


async def props(request: Request) -> Response:
    """Of the model `?model=`, the first without it; it is loaded for that."""
    service = service_of(request)
    async with service.models.lease(request.query_params.get("model")) as lease:
        model, slots = lease.model, lease.served.admission.slots
        tokenizer = model.tokenizer if model.has_tokenizer else None
        special = {name: tokenizer.special_token(name) if tokenizer else None for name in ("bos_token", "eos_token")}
        found = {
            "default_generation_settings": {"n_ctx": model.context, "params": _defaults(model.defaults)},
            "total_slots": slots,
            "model_alias": lease.served.name,
            "chat_template": tokenizer.chat_template or "" if tokenizer else "",
            **special,
            "modalities": {"vision": False, "audio": False},
            "build_info": "dsv3c",
        }
    return JSONResponse(found)


async def slots(request: Request) -> Response:
    """Of the model `?model=`; of all without it."""
    models, name = service_of(request).models, request.query_params.get("model")
    chosen = list(models) if name is None else [models.find(name)]
    return JSONResponse([slot for served in chosen for slot in _slots(served)])


async def tokenize(request: Request) -> Response:
    body = await read_body(request)
    content, special = body.required_text("content"), body.flag("add_special")
    pieces = body.flag("with_pieces")
    async with service_of(request).models.lease(body.text("model")) as lease:
        model = lease.model
        tokenizer = await asyncio.to_thread(lambda: model.tokenizer)
        encode = tokenizer.encode if special else tokenizer.encode_plain
        tokens: list[Any] = await asyncio.to_thread(encode, content)
        if pieces:
            tokens = [{"id": token, "piece": _piece(token_bytes(tokenizer, token))} for token in tokens]
    return JSONResponse({"tokens": tokens})


async def detokenize(request: Request) -> Response:
    body = await read_body(request)
    ids = body.integers("tokens", MOST_TOKENS, (1 << 31) - 1)
    if ids is None:
        raise body.missing("tokens", "a list of token ids")
    async with service_of(request).models.lease(body.text("model")) as lease:
        tokenizer = await asyncio.to_thread(lambda: lease.model.tokenizer)
        strange = next((at for at, token in enumerate(ids) if token >= tokenizer.id_bound), None)
        if strange is not None:
            raise body.wrong(f"tokens[{strange}]", f"the tokenizer has no token {ids[strange]}")
        text = await asyncio.to_thread(tokenizer.decode, ids)
    return JSONResponse({"content": text})


async def metrics(request: Request) -> Response:
    return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _slots(served: Served) -> list[dict[str, Any]]:
    admission = served.admission
    context = 0 if served.loaded is None else served.loaded.model.context
    at_work = {slot: place for place in admission.working for slot in place.slots}
    found = []
    for number in range(admission.slots):
        place = at_work.get(number)
        slot: dict[str, Any] = {
            "id": number,
            "model": served.name,
            "n_ctx": context,
            "is_processing": place is not None,
        }
        if place is not None:
            slot |= {"n_prompt_tokens": place.prompt_tokens, "n_decoded": place.tokens}
        found.append(slot)
    return found


def _defaults(params: Any) -> dict[str, Any]:
    names = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
    return {name: getattr(params, name) for name in names}


def _piece(data: bytes) -> Any:
    """A text, or bytes where they are none."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


routes = [
    Route("/health", health),
    Route("/v1/health", health),
    Route("/props", props),
    Route("/slots", slots),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/metrics", metrics),
]
