"""Pieces of JSON that several of OpenAI's objects have."""

from __future__ import annotations

import secrets
import time
from typing import Any

from dsv3c.runtime.engine.generation import Generation
from dsv3c.runtime.server.deltas import Reason, Scored, Usage

FINISH: dict[Reason, str] = {"stop": "stop", "length": "length", "calls": "tool_calls", "cancelled": "stop"}


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(12)}"


def now() -> int:
    return int(time.time())


def usage_of(prompt: int, usages: list[Usage]) -> dict[str, Any]:
    """prompt: tokens of all prompts, each counted once however many results it has."""
    completion = sum(u.completion for u in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": min(prompt, sum(u.cached for u in usages))},
        "completion_tokens_details": {"reasoning_tokens": sum(u.thoughts for u in usages)},
    }


def timings_of(answer: Generation) -> dict[str, Any]:
    """As llama-server tells them."""
    read = answer.prompt_tokens - answer.cached_tokens
    return {
        "cache_n": answer.cached_tokens,
        "prompt_n": read,
        "prompt_ms": round(1000 * answer.prompt_seconds, 3),
        "prompt_per_second": round(answer.prompt_tokens_per_second, 3),
        "predicted_n": len(answer.token_ids),
        "predicted_ms": round(1000 * answer.decode_seconds, 3),
        "predicted_per_second": round(answer.decode_tokens_per_second, 3),
        "draft_n": answer.drafted.proposed,
        "draft_n_accepted": answer.drafted.accepted,
    }


def scored_json(token: Scored) -> dict[str, Any]:
    """A token in `logprobs.content` of a chat."""
    return {**_alone(token), "top_logprobs": [_alone(other) for other in token.top]}


def _alone(token: Scored) -> dict[str, Any]:
    return {"token": token.text, "logprob": finite(token.logprob), "bytes": list(token.data)}


def finite(logprob: float | None) -> float | None:
    """JSON has no infinities: -9999 stands for one, as in OpenAI's API."""
    return None if logprob is None else max(logprob, -9999.0)
