"""POST /v1/completions, as OpenAI's API has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dsv3c.runtime.server.api.experts import experts_of
from dsv3c.runtime.server.api.openai_completed import completed
from dsv3c.runtime.server.api.openai_parts import FINISH, finite, new_id, now, timings_of, usage_of
from dsv3c.runtime.server.api.sampling import MOST_TOP_LOGPROBS, how_of
from dsv3c.runtime.server.asked import Asked
from dsv3c.runtime.server.deltas import Delta, Deltas, Ended, Scored, Text
from dsv3c.runtime.server.fields import Body

MOST_PROMPTS, MOST_TOKENS, USUAL_LENGTH = 1_000, 1 << 20, 16


def asked_of(body: Body) -> Asked:
    """Raises FieldInvalid, FieldMissing."""
    how, fields = how_of(body)
    if body.text("suffix"):
        raise body.wrong("suffix", "the model cannot fill in; leave it out")
    best_of, results = body.integer("best_of", 1, 128), how.get("num_return_sequences", 1)
    if best_of is not None and best_of != results:
        raise body.wrong("best_of", f"it must be n, which is {results}")
    length = body.integer("max_tokens", 0, 1 << 31)
    length = USUAL_LENGTH if length is None else length
    echo = bool(body.flag("echo"))
    if length == 0 and not echo:
        raise body.wrong("max_tokens", "0 goes with echo: true")
    if length:
        how["max_new_tokens"] = length
    logprobs = body.integer("logprobs", 0, MOST_TOP_LOGPROBS)
    if logprobs is not None:
        how["logprobs"] = logprobs
    fields |= {"max_new_tokens": "max_tokens", "logprobs": "logprobs", "prompt": "prompt"}
    return Asked(
        model=body.text("model"), prompts=_prompts(body), how=how, fields=fields, echo=echo, complete=length > 0
    )


def _prompts(body: Body) -> tuple[str | tuple[int, ...], ...]:
    """A text, ids, or a list of either."""
    given = body.values.get("prompt")
    if given is None:
        raise body.missing("prompt", "a text or a list of token ids")
    if isinstance(given, str):
        return (given,)
    found = body.entries("prompt", MOST_TOKENS) or []
    if not found:
        raise body.wrong("prompt", "it is empty")
    if type(found[0]) is int:
        return (tuple(body.integers("prompt", MOST_TOKENS, (1 << 31) - 1) or ()),)
    if len(found) > MOST_PROMPTS:
        raise body.wrong("prompt", f"it has {len(found)} prompts, at most {MOST_PROMPTS} can be")
    return tuple(_prompt(body, number, each) for number, each in enumerate(found))


def _prompt(body: Body, number: int, given: Any) -> str | tuple[int, ...]:
    name = f"prompt[{number}]"
    if isinstance(given, str):
        return given
    return tuple(Body({name: given}, body.path).integers(name, MOST_TOKENS, (1 << 31) - 1) or ())


async def completions(request: Request) -> Response:
    return await completed(request, asked_of, _Reply, _collect)


@dataclass
class _Reply:
    """As `Reply`. offsets: characters that each result has so far."""

    model: str
    with_usage: bool
    prompt_tokens: int
    id: str = field(default_factory=lambda: new_id("cmpl"))
    created: int = field(default_factory=now)
    ended: list[Ended] = field(default_factory=list)
    offsets: dict[int, int] = field(default_factory=dict)

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        yield _chunk(delta, self)

    def last(self) -> dict[str, Any]:
        return self.json([], usage=self.usage())

    def json(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        head = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        return {**head, "choices": choices, **more}

    def usage(self) -> dict[str, Any]:
        return usage_of(self.prompt_tokens, [ended.usage for ended in self.ended])

    def logprobs(self, index: int, tokens: list[Scored]) -> dict[str, Any] | None:
        if not tokens:
            return None
        offsets = []
        for token in tokens:
            offsets.append(self.offsets.setdefault(index, 0))
            self.offsets[index] += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [finite(token.logprob) for token in tokens],
            "top_logprobs": [{other.text: finite(other.logprob) for other in token.top} or None for token in tokens],
            "text_offset": offsets,
        }


async def _collect(deltas: Deltas, reply: _Reply) -> dict[str, Any]:
    texts: dict[int, list[str]] = {}
    tokens: dict[int, list[Scored]] = {}
    ended: dict[int, Ended] = {}
    async for delta in deltas:
        if isinstance(delta, Text):
            texts.setdefault(delta.index, []).append(delta.text)
            tokens.setdefault(delta.index, []).extend(delta.logprobs)
        elif isinstance(delta, Ended):
            reply.ended.append(delta)
            ended[delta.index] = delta
    choices = [
        {
            "index": index,
            "text": "".join(texts.get(index, ())),
            "logprobs": reply.logprobs(index, tokens.get(index, [])),
            "finish_reason": FINISH[ended[index].reason],
            **experts_of(ended[index]),
        }
        for index in sorted(ended)
    ]
    return reply.json(choices, usage=reply.usage(), timings=timings_of(reply.ended[0].generation))


def _chunk(delta: Delta, reply: _Reply) -> dict[str, Any]:
    if isinstance(delta, Text):
        logprobs = reply.logprobs(delta.index, list(delta.logprobs))
        return reply.json([{"index": delta.index, "text": delta.text, "logprobs": logprobs, "finish_reason": None}])
    assert isinstance(delta, Ended)
    reply.ended.append(delta)
    choice = {"index": delta.index, "text": "", "logprobs": None, "finish_reason": FINISH[delta.reason]}
    return reply.json([{**choice, **experts_of(delta)}], timings=timings_of(delta.generation))


routes = [Route("/v1/completions", completions, methods=["POST"])]
