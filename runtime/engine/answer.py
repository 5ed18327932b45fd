"""One answer as it is written: which text is certain after a token, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np

from dsv3c.runtime.devices.device import Floats
from dsv3c.runtime.engine.generation import Drafted, Event, FinishReason, Generation, Task, TokenLogprobs
from dsv3c.runtime.text.stream import StopFilter, StreamDecoder


@dataclass
class Times:
    """Seconds of the steps that a request took part in: up to its first token, and after it."""

    prompt: float = 0.0
    decode: float = 0.0


class Answer:
    """Takes tokens one by one until `reason` is set. Without `task.decode` texts are empty."""

    def __init__(self, task: Task, index: int = 0) -> None:
        self.task = task
        self.index = index
        self.reason: FinishReason | None = None if task.limit > 0 else "length"
        self._decoder = StreamDecoder(task.decode or _no_text)
        self._stop = StopFilter(task.params.stop)
        self._over = None if task.over is None else task.over()
        self._tokens: list[int] = []
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprobs] = []
        self._draws = self._forced = 0

    @property
    def left(self) -> int:
        """Tokens that it may still get."""
        return self.task.limit - len(self._tokens)

    def push(self, token: int, logprobs: TokenLogprobs | None = None) -> Event | None:
        """What to tell of a token; None for one that ends the text."""
        self._draws += 1
        if token in self.task.end_tokens:
            self.reason = "stop"
            return None
        piece = self._stop.push(self._decoder.push(token))
        self._tokens.append(token)
        self._texts.append(piece)
        if logprobs is not None:
            self._logprobs.append(logprobs)
        if self._stop.stopped or (self._over is not None and self._over(piece)):
            self.reason = "stop"
        elif len(self._tokens) >= self.task.limit:
            self.reason = "length"
        return Event(piece, token, None, self.index, logprobs)

    def force(self, token: int, logprobs: TokenLogprobs | None = None) -> Event | None:
        """As `push`, of a token that was not drawn."""
        self._forced += 1
        return self.push(token, logprobs)

    def end(self, reason: FinishReason, times: Times, drafted: Drafted, cached: int, dropped: int) -> Event:
        """The last event, with text that was held back. cached: of the prompt and of tokens that were forced behind
        it."""
        rest = self._stop.push(self._decoder.flush())
        if self._stop.stopped:
            reason = "stop"
        rest += self._stop.flush()
        self._texts.append(rest)
        self.reason = reason
        generation = Generation(
            text="".join(self._texts),
            token_ids=tuple(self._tokens),
            finish_reason=reason,
            prompt_tokens=self.task.prompt.size,
            prompt_seconds=times.prompt,
            decode_seconds=times.decode,
            steps=max(0, self._draws - 1),
            logprobs=tuple(self._logprobs),
            cached_tokens=min(cached, self.task.prompt.size),
            dropped_tokens=dropped,
            forced_tokens=self._forced,
            drafted=drafted,
        )
        return Event(rest, None, generation, self.index)


def logprobs_of(logits: Floats, token: int, count: int) -> TokenLogprobs:
    """Of `token` and of the `count` likeliest, for logits [V]."""
    shifted = logits.astype(np.float64) - float(logits.max())
    values = shifted - np.log(np.exp(shifted).sum())
    count = min(count, values.size)
    head = np.argpartition(-values, count - 1)[:count] if count else np.zeros(0, np.intp)
    order = head[np.lexsort((head, -values[head]))]
    return TokenLogprobs(token, float(values[token]), tuple((int(i), float(values[i])) for i in order))


def _no_text(tokens: Many[int]) -> str:
    return ""
