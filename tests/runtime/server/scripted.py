"""A server that speaks the API with answers from a script, so that the page can be tested without a model."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from dsv3c.runtime.server import page
from tests.waiting import PATIENCE, until

MODELS = ("fairytale-10m", "moonlight-16b")
KEY = "open-sesame"
PACE = 0.001  # seconds a token

MARKDOWN = """\
A mixture of experts keeps many small networks in a layer and sends each token through a few of them, so the model \
*knows* much and **computes** little.

### How a token is routed

1. A gate scores every expert: $s_i = \\sigma(x^T e_i)$
2. The best groups are kept, and within them the best experts
3. Their outputs are mixed by the normed scores

| Model | Experts | per token |
|---|---:|---:|
| DeepSeek-V3 | 256 | 8 |
| Moonlight | 64 | 6 |

```python
def route(scores, k):
    chosen = scores.argsort()[-k:]  # the k best
    weights = scores[chosen] / scores[chosen].sum()
    return chosen, weights
```

The [paper](https://arxiv.org/abs/2412.19437) says how the load stays even without a loss for it: \
`e_score_correction_bias` moves with what each expert gets.
"""

HOSTILE = """\
<script>window.hacked = 1</script>

<img src=x onerror="window.hacked = 1"> and <b onmouseover='window.hacked = 1'>bold</b>

[click](javascript:window.hacked=1) [data](data:text/html,<script>window.hacked=1</script>) [ok](https://example.invalid/)

![picture](https://example.invalid/tracker.png) <https://example.invalid/auto> <javascript:window.hacked=1>

```html
<script>window.hacked = 1</script>
```

[a]: javascript:window.hacked=1
"""

STORY_OF = "A story of a fox, in three sentences."
EXPLAIN = "Explain mixture of experts."
THOUGHTS = "The user asks for a short story. A fox, then. Three sentences should do, and the last one turns it."
STORY = "A fox found a mirror in the snow. She shared her fish with the stranger in it. In spring only she was round."
ANSWERS = {EXPLAIN: MARKDOWN, "hostile": HOSTILE, "quick": "It is quick.", "other": "Another one."}
COMPLETION = [" there", " lived", " a", " mill", "er", " who", " had", " three", " sons", ",", " and", " the", " young"]
COMPLETION += ["est", " of", " them", " was", " called", " Hans", "."]
OTHERS = {" there": " a", " lived": " was", " mill": " king", " three": " two", " sons": " daughters", " Hans": " Jack"}


@dataclass
class Script:
    """What the server is told, and what it was asked for."""

    key: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    gone: int = 0  # streams whose client went away

    def app(self) -> Starlette:
        routes = [
            Route("/v1/models", self.models),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/props", self.props),
            Route("/slots", self.slots),
            Route("/metrics", self.metrics),
        ]
        return Starlette(routes=[*page.routes(), *routes])

    def refused(self, request: Request) -> Response | None:
        self.paths.append(request.url.path)
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return error(401, "this server wants an API key")

    async def models(self, request: Request) -> Response:
        return self.refused(request) or JSONResponse({"object": "list", "data": [{"id": name} for name in MODELS]})

    async def props(self, request: Request) -> Response:
        settings = {"n_ctx": 2048, "params": {"temperature": 0.8, "top_p": 0.95, "top_k": 0}}
        template = "{{ messages }}"
        found = {"default_generation_settings": settings, "total_slots": 16, "chat_template": template}
        return self.refused(request) or JSONResponse(found)

    async def slots(self, request: Request) -> Response:
        return self.refused(request) or JSONResponse([{"id": n, "is_processing": n in (0, 1, 4)} for n in range(16)])

    async def metrics(self, request: Request) -> Response:
        return self.refused(request) or PlainTextResponse(METRICS)

    async def chat(self, request: Request) -> Response:
        if refusal := self.refused(request):
            return refusal
        body = await request.json()
        self.asked.append(body)
        said = body["messages"][-1]["content"]
        if said == "wrong":
            return error(400, "temperature must be a finite number that is not negative", "temperature")
        if said == "busy":
            reason = "16 requests are at work and 64 wait, which is all this server takes"
            return error(429, reason, None, {"Retry-After": "3"})
        if said == "uncounted" and "experts" in body:
            return error(400, "the model has no experts that could be counted", "experts")
        return StreamingResponse(self.stream(said, body), media_type="text/event-stream")

    async def stream(self, said: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
        try:
            count = 0
            async for delta in _deltas(said):
                count += 1
                await asyncio.sleep(PACE)
                yield event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            if said == "breaks":
                yield event({"error": {"message": "the model failed", "type": "server_error"}})
                return
            last: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": "stop"}
            if body.get("experts"):
                last["experts"] = experts(26, 16, 4)
            yield b": keep-alive\r\n\r\n" + event({"choices": [last]})
            usage = {"prompt_tokens": 24, "completion_tokens": count, "prompt_tokens_details": {"cached_tokens": 16}}
            yield event({"choices": [], "usage": usage})
            yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.gone += 1
            raise

    async def complete(self, request: Request) -> Response:
        if refusal := self.refused(request):
            return refusal
        body = await request.json()
        self.asked.append(body)

        async def stream() -> AsyncIterator[bytes]:
            for number, token in enumerate(COMPLETION):
                yield event({"choices": [{"index": 0, "text": token, "logprobs": scored(token, number)}]})
            yield event({"choices": [{"index": 0, "text": "", "finish_reason": "length", "logprobs": None}]})
            yield b"data: [DONE]\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")


def event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def error(status: int, message: str, param: str | None = None, headers: dict[str, str] | None = None) -> Response:
    content = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}
    return JSONResponse(content, status, headers)


async def _deltas(said: str) -> AsyncIterator[dict[str, str]]:
    yield {"role": "assistant", "content": ""}
    if said == STORY_OF:
        for word in THOUGHTS.split(" "):
            yield {"reasoning_content": word + " "}
        for word in STORY.split(" "):
            yield {"content": word + " "}
    elif said == "slow":
        for number in range(2000):
            yield {"content": f"word{number} "}
            await asyncio.sleep(0.02)
    else:
        text = ANSWERS.get(said, f"You said: {said}")
        for at in range(0, len(text), 7):
            yield {"content": text[at : at + 7]}


def scored(token: str, number: int) -> dict[str, Any]:
    probability = (0.93, 0.71, 0.42, 0.18, 0.98, 0.055)[number % 6]
    rest = zip((OTHERS.get(token, " so"), " its", " when", " all"), (0.6, 0.2, 0.09, 0.04), strict=True)
    top = {token: math.log(probability)} | {other: math.log((1 - probability) * part) for other, part in rest}
    return {"tokens": [token], "token_logprobs": [math.log(probability)], "top_logprobs": [top], "text_offset": [0]}


def experts(layers: int, of: int, each: int) -> dict[str, Any]:
    """Counts that look like those of a model: some experts are liked, by some layers more than by others."""

    def counts(layer: int, tokens: int) -> list[int]:
        waves = [1.6 * math.sin(7.1 * layer + 3.7 * expert * (1 + layer % 5)) for expert in range(of)]
        liking = [math.exp(wave + (expert * layer) % 3 / 2) for expert, wave in enumerate(waves)]
        return [min(tokens, round(like / sum(liking) * tokens * each)) for like in liking]

    rows = [{"layer": n, "prompt": counts(n + 40, 24), "answer": counts(n, 142)} for n in range(1, layers + 1)]
    return {"experts": of, "top_k": each, "prompt_tokens": 24, "answer_tokens": 142, "layers": rows}


METRICS = """\
# HELP dsv3c_requests_waiting Requests in the queue
dsv3c_requests_working{model="fairytale-10m"} 3.0
dsv3c_requests_waiting{model="fairytale-10m"} 0.0
dsv3c_requests_waiting{model="moonlight-16b"} 7.0
dsv3c_cache_pages{model="fairytale-10m"} 512.0
dsv3c_cache_pages_free{model="fairytale-10m"} 318.0
dsv3c_prefix_cache_pages{model="fairytale-10m"} 96.0
dsv3c_answers_total{model="fairytale-10m",reason="stop"} 38.0
dsv3c_answers_total{model="fairytale-10m",reason="length"} 4.0
dsv3c_tokens_total{kind="prompt",model="fairytale-10m"} 9120.0
dsv3c_tokens_total{kind="prompt_cached",model="fairytale-10m"} 6144.0
dsv3c_tokens_total{kind="generated",model="fairytale-10m"} 12040.0
dsv3c_time_to_first_token_seconds_count{model="fairytale-10m"} 42.0
dsv3c_time_to_first_token_seconds_sum{model="fairytale-10m"} 1.53
dsv3c_inter_token_seconds_count{model="fairytale-10m"} 11998.0
dsv3c_inter_token_seconds_sum{model="fairytale-10m"} 9.1
process_resident_memory_bytes 1.93e+08
"""


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of an app that is served from a thread, at a port that the system chooses."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        assert server.started, "the server did not start"
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(PATIENCE)
