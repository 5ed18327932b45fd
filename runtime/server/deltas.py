"""What an answer consists of as it comes, whatever the API."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal

from dsv3c.runtime.engine.generation import Generation

Reason = Literal["stop", "length", "calls", "cancelled"]


@dataclass(frozen=True)
class Scored:
    """A token with the logarithm of its probability, None for the first of a prompt, which nothing foretells.

    data: its bytes, which may be a part of a character. top: the likeliest, best first; empty for these themselves.
    """

    text: str
    data: bytes
    token_id: int
    logprob: float | None
    top: tuple[Scored, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens. cached: of the prompt, those that were not read again. thoughts: of the completion."""

    prompt: int
    completion: int
    cached: int = 0
    thoughts: int = 0


@dataclass(frozen=True)
class Begun:
    """Comes first, once: nothing is wrong with the request. prompt_tokens: of each prompt."""

    prompt_tokens: tuple[int, ...]


@dataclass(frozen=True)
class Text:
    """index: of the result. logprobs: of the tokens that this text is of, where asked for; the text may be empty."""

    index: int
    text: str
    logprobs: tuple[Scored, ...] = ()


@dataclass(frozen=True)
class Thought:
    index: int
    text: str


@dataclass(frozen=True)
class CallBegun:
    """A call of a tool. number: of the call in this result, from 0."""

    index: int
    number: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """Some more of the JSON text of a call's arguments."""

    index: int
    number: int
    text: str


@dataclass(frozen=True)
class Ended:
    """The last one of a result. stopped_by: the stop string that ended it, if one did."""

    index: int
    reason: Reason
    usage: Usage
    generation: Generation
    stopped_by: str | None = None


Deltas = AsyncGenerator["Delta", None]
Delta = Begun | Text | Thought | CallBegun | CallArguments | Ended
