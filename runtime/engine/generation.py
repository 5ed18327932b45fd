"""Generate from one prompt: feed it, sample, stream the text, stop. What came out and how fast it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from dsv3c.runtime.devices.device import Floats
from dsv3c.runtime.engine.history import History
from dsv3c.runtime.engine.params import SamplingParams
from dsv3c.runtime.engine.sampling import Draw, Sampler
from dsv3c.runtime.engine.session import Ints
from dsv3c.runtime.text.stream import Decode, StopFilter, StreamDecoder

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Generation:
    """The whole answer. token_ids are without the end token. Times leave out what the consumer of a stream took.

    finish_reason is "stop" (end token or stop string) or "length" (max_new_tokens or the context is used up).
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    prompt_seconds: float
    decode_seconds: float
    steps: int

    @property
    def first_token_seconds(self) -> float:
        return self.prompt_seconds

    @property
    def prompt_tokens_per_second(self) -> float:
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens after the first, which comes out of the prompt's last step."""
        return self.steps / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True)
class Event:
    """One token of a stream: text that became certain with it (may be empty). The last one has the generation.

    The last event may have no token: an end token, or text that was held back, comes without one.
    """

    text: str
    token_id: int | None = None
    generation: Generation | None = None

    @property
    def finish_reason(self) -> FinishReason | None:
        return None if self.generation is None else self.generation.finish_reason


class Feed(Protocol):
    """Appends tokens to one sequence and returns a copy of the last token's logits [V]."""

    def __call__(self, tokens: Ints) -> Floats: ...


class DrawToken(Protocol):
    """Appends tokens to one sequence and lets the device draw the next, without its logits being read."""

    def __call__(self, tokens: Ints, draw: Draw) -> int: ...


@dataclass(frozen=True)
class Task:
    """One prompt with all that is needed to answer it. `room`: tokens the context holds beyond the prompt."""

    prompt: Ints
    params: SamplingParams
    end_tokens: frozenset[int]
    vocab_size: int
    room: int
    decode: Decode | None


def generate(
    task: Task, feed: Feed, clock: Callable[[], float] = time.perf_counter, draw: DrawToken | None = None
) -> Iterator[Event]:
    """Events of one generation, the last with the result. Without `task.decode` texts are empty.

    draw: for a device that can, used as long as the sampler leaves the logits as they are.
    """
    params = task.params
    end_tokens = params.end_tokens(task.end_tokens)
    sampler, history = Sampler(params, task.vocab_size, end_tokens), History(task.prompt)
    decoder = StreamDecoder(task.decode or _no_text)
    stop = StopFilter(params.stop)
    limit = min(params.limit(task.prompt.size), task.room)
    tokens: list[int] = []
    texts: list[str] = []
    seconds = [0.0, 0.0]  # of the prompt up to the first token, of all later tokens
    steps = 0
    reason: FinishReason = "length"
    feeding = task.prompt
    while len(tokens) < limit:
        begin = clock()
        wanted = None if draw is None else sampler.draw()
        if draw is None or wanted is None:
            token = sampler.sample(feed(feeding), history)
        else:
            token = sampler.token(draw(feeding, wanted))
        if token not in end_tokens:
            piece = stop.push(decoder.push(token))
        seconds[bool(steps)] += clock() - begin
        steps += 1
        if token in end_tokens:
            reason = "stop"
            break
        tokens.append(token)
        texts.append(piece)
        if stop.stopped:
            reason = "stop"
            yield Event(piece, token)
            break
        yield Event(piece, token)
        history.append(token)
        feeding = np.array([token], np.int32)
    rest = stop.push(decoder.flush())
    if stop.stopped:
        reason = "stop"
    rest += stop.flush()
    texts.append(rest)
    times = (seconds[False], seconds[True], max(0, steps - 1))
    yield Event(rest, None, Generation("".join(texts), tuple(tokens), reason, task.prompt.size, *times))


def _no_text(tokens: Many[int]) -> str:
    return ""
