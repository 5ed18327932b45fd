"""Many clients of a server at once: what each asks for, and what came of it.

They speak the part of `/v1/completions` that llama-server has as well, with prompts of token ids: the same work for
both, whatever their tokenizers make of a text.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any

import httpx2

PATIENCE = 300.0  # seconds for an answer; a server that is alive takes less


@dataclass(frozen=True)
class Wish:
    """What a client asks for: so many tokens, none of which ends it. leaves: seconds after which it goes away."""

    prompt: tuple[int, ...]
    tokens: int
    temperature: float = 0.0
    seed: int = 0
    stream: bool = True
    leaves: float | None = None

    @property
    def how(self) -> dict[str, Any]:
        """As parameters of the engine."""
        content = {"temperature": self.temperature, "seed": self.seed, "ignore_eos": True}
        return {**content, "max_new_tokens": self.tokens}

    @property
    def body(self) -> dict[str, Any]:
        content = {"prompt": self.prompt, "max_tokens": self.tokens, "temperature": self.temperature, "seed": self.seed}
        streaming = {"stream": True, "stream_options": {"include_usage": True}} if self.stream else {}
        return {**content, **streaming, "ignore_eos": True}


@dataclass
class Told:
    """What came of a wish: the status of HTTP, 0 for none, and times in seconds. fault: what broke it, other than the
    client's own leaving."""

    wish: Wish
    status: int = 0
    text: str = ""
    finish: str | None = None
    tokens: int = 0
    first: float | None = None
    gaps: list[float] = field(default_factory=list)
    seconds: float = 0.0
    retry_after: float = 0.0
    left: bool = False
    fault: str | None = None

    @property
    def whole(self) -> bool:
        return self.status == 200 and self.finish is not None and not self.left and self.fault is None


@dataclass(frozen=True)
class Mix:
    """Requests of mixed lengths, in words of a vocabulary: most are streams, some clients leave, some prompts begin
    alike."""

    vocab_size: int
    longest_prompt: int
    longest_answer: int
    longest_stay: float
    leaving: float = 0.15
    alike: float = 0.3

    def wish(self, draw: random.Random) -> Wish:
        prompt = [draw.randrange(3, self.vocab_size) for _ in range(_length(draw, 4, self.longest_prompt))]
        if draw.random() < self.alike:
            common = [3 + number % (self.vocab_size - 3) for number in range(self.longest_prompt // 2)]
            prompt = (common + prompt)[: self.longest_prompt]
        return Wish(
            prompt=tuple(prompt),
            tokens=_length(draw, 4, self.longest_answer),
            temperature=draw.choice([0.0, 0.8]),
            seed=draw.randrange(1 << 31),
            stream=draw.random() < 0.8,
            leaves=draw.uniform(0, self.longest_stay) if draw.random() < self.leaving else None,
        )


def _length(draw: random.Random, least: int, most: int) -> int:
    """Short ones are as many as long ones, by the doubling."""
    return min(most, int(least * (most / least) ** draw.random()))


async def ask(http: httpx2.AsyncClient, wish: Wish) -> Told:
    told, began = Told(wish), time.perf_counter()
    try:
        async with asyncio.timeout(wish.leaves):
            await (_stream if wish.stream else _whole)(http, told, began)
    except TimeoutError:
        told.left = True
    except (httpx2.HTTPError, ValueError, KeyError) as error:
        told.fault = f"{type(error).__name__}: {error}"
    told.seconds = time.perf_counter() - began
    return told


async def _whole(http: httpx2.AsyncClient, told: Told, began: float) -> None:
    response = await http.post("/v1/completions", json=told.wish.body)
    _note_status(response, told)
    if response.status_code == 200:
        content = response.json()
        told.tokens = content["usage"]["completion_tokens"]
        told.text, told.finish = content["choices"][0]["text"], content["choices"][0]["finish_reason"]


async def _stream(http: httpx2.AsyncClient, told: Told, began: float) -> None:
    async with http.stream("POST", "/v1/completions", json=told.wish.body) as response:
        _note_status(response, told)
        if response.status_code != 200:
            return
        last = began
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            now = time.perf_counter()
            if _take(json.loads(line[6:]), told):
                if told.first is None:
                    told.first = now - began
                else:
                    told.gaps.append(now - last)
                last = now


def _take(chunk: dict[str, Any], told: Told) -> bool:
    """Whether it tells a token, which may have no text yet."""
    if "error" in chunk:
        raise ValueError(f"the stream says {chunk['error']}")
    told.tokens = (chunk.get("usage") or {}).get("completion_tokens", told.tokens)
    for choice in chunk["choices"]:
        told.text += choice["text"]
        told.finish = choice["finish_reason"] or told.finish
    return any(choice["finish_reason"] is None for choice in chunk["choices"])


def _note_status(response: httpx2.Response, told: Told) -> None:
    told.status = response.status_code
    told.retry_after = float(response.headers.get("retry-after", 0))


async def load(
    url: str, wish: Callable[[random.Random], Wish], clients: int, seconds: float, seed: int = 0
) -> list[Told]:
    """Clients that ask one thing after the other until the time is over, and then wait for their last answers."""
    async with client(url) as http:
        until = time.perf_counter() + seconds

        async def one(number: int) -> list[Told]:
            draw = random.Random(f"{seed} {number}")
            found = [await ask(http, wish(draw))]
            while (left := until - time.perf_counter()) > 0:
                await asyncio.sleep(min(left, found[-1].retry_after))
                found.append(await ask(http, wish(draw)))
            return found

        return [told for found in await asyncio.gather(*map(one, range(clients))) for told in found]


async def all_at_once(url: str, wishes: Many[Wish]) -> list[Told]:
    async with client(url) as http:
        return await asyncio.gather(*(ask(http, wish) for wish in wishes))


def client(url: str) -> httpx2.AsyncClient:
    # Nothing is encrypted: certificates would only take their time.
    return httpx2.AsyncClient(base_url=url, timeout=PATIENCE, limits=httpx2.Limits(max_connections=None), verify=False)
