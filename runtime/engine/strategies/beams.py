"""Beam search: the likeliest texts are followed side by side, on pages that they share as far as they are alike.

As transformers has it since 4.50 (`GenerationMixin._beam_search`), so that the same parameters find the same texts. In
groups (diverse beam search, arXiv 1610.02424, section 3): each follows its own beams, and a token weighs less by
`diversity_penalty` for each beam of an earlier group that took it in the same step. That counts where beams are chosen,
not in what their texts are worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from dsv3c.runtime.devices.device import Floats
from dsv3c.runtime.engine.answer import Answer, Times
from dsv3c.runtime.engine.generation import Drafted, Event, FinishReason, Task
from dsv3c.runtime.engine.lanes import Lane
from dsv3c.runtime.engine.processors.filters import divisor
from dsv3c.runtime.engine.sampling import Draw, Sampler
from dsv3c.runtime.engine.strategies import Rows

_WORST = np.float32(-1e9)  # of a score that does not count


class Candidate(NamedTuple):
    """A beam that goes on with a token, and the log-probability of all its text."""

    beam: int
    token: int
    score: np.float32
    ends: bool


class Result(NamedTuple):
    """A text that ended: its generated tokens with the last, and its score with the length penalty."""

    tokens: tuple[int, ...]
    score: np.float32


@dataclass
class _Beam:
    lane: Lane
    score: np.float32


class _Group:
    """Beams that compete with each other. The first step has one, of the prompt."""

    def __init__(self, task: Task, size: int) -> None:
        self.size = size
        self.beams: list[_Beam] = []
        self.results: list[Result] = []  # best first
        self.done = False
        self._task = task
        self._can_improve = True

    def choose(self, logprobs: Many[Floats], used: Many[int], ends: Ends) -> list[Candidate]:
        """The best continuations, enough that `size` of them go on although others end. used: tokens that beams of
        earlier groups took in this step."""
        total = np.concatenate([row + beam.score for row, beam in zip(logprobs, self.beams, strict=True)])
        weighed = total.copy()
        width = logprobs[0].size
        for token in used:
            weighed[token::width] -= np.float32(self._task.params.diversity_penalty)
        count = min(max(2, 1 + len(self._task.end_tokens)) * self.size, total.size)
        head = np.argpartition(-weighed, count - 1)[:count]
        order = head[np.lexsort((head, -weighed[head]))]
        found = [divmod(int(index), width) for index in order if weighed[index] > -np.inf]
        places = [int(index) for index in order if weighed[index] > -np.inf]
        return [
            Candidate(beam, token, total[place], ends(self.beams[beam].lane, token))
            for (beam, token), place in zip(found, places, strict=True)
        ]

    def advance(self, chosen: Many[Candidate]) -> list[int]:
        """Go on with the best that do not end, keep those that end; returns the tokens of the best, ended or not."""
        params = self._task.params
        length = self.beams[0].lane.history.generated.size + 1
        full = len(self.results) == self.size
        if self._can_improve and not (full and params.early_stopping is True):
            texts = [self.beams[each.beam].lane.history.generated for each in chosen]
            ended = [
                Result((*text.tolist(), each.token), _penalised(each.score, length, params.length_penalty))
                for each, text in zip(chosen[: self.size], texts, strict=False)
                if each.ends
            ]
            self.results = sorted(self.results + ended, key=lambda result: -result.score)[: self.size]
        going = [each for each in chosen if not each.ends][: self.size]
        self._follow(going)
        self.done = not going or self._is_over(length)
        return [each.token for each in chosen[: self.size]]

    def close(self) -> None:
        for beam in self.beams:
            beam.lane.leave()

    def _follow(self, going: Many[Candidate]) -> None:
        """Each beam's lane goes to the first that continues it, the others fork it."""
        kept: dict[int, Lane] = {each.beam: self.beams[each.beam].lane for each in going}
        for index, beam in enumerate(self.beams):
            if index not in kept:
                beam.lane.leave()
        followed, taken = [], set[int]()
        # Forks before anything is appended: all of them continue the text as it was.
        for each in going:
            lane = kept[each.beam].fork() if each.beam in taken else kept[each.beam]
            taken.add(each.beam)
            followed.append(_Beam(lane, each.score))
        for each, beam in zip(going, followed, strict=True):
            beam.lane.history.append(each.token)
        self.beams = followed

    def _is_over(self, length: int) -> bool:
        """Whether no beam can become better than what has ended."""
        params = self._task.params
        full = len(self.results) == self.size
        if params.early_stopping == "never" and params.length_penalty > 0:
            length = self._task.limit
        best = _penalised(self.beams[0].score, length, params.length_penalty)
        self._can_improve &= not full or bool(best > self.results[-1].score)
        return not self._can_improve or (full and params.early_stopping is True)


class Ends:
    """Whether a text ends with a token: one that ends texts, the last there is room for, the end of a stop string."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._longest = max((len(stop.encode()) for stop in task.params.stop), default=0)

    def __call__(self, lane: Lane, token: int) -> bool:
        generated = lane.history.generated
        if token in self._task.end_tokens or generated.size + 1 >= self._task.limit:
            return True
        if not self._longest or self._task.decode is None:
            return False
        # A token is a byte at least, so a stop string lies within as many tokens, and some for what precedes it.
        tail = [*generated[-self._longest - 4 :].tolist(), token]
        text = self._task.decode(tail)
        return any(stop in text for stop in self._task.params.stop)


class Beams:
    """`num_beams` texts, told when all of them have ended."""

    def __init__(self, task: Task, lane: Lane) -> None:
        params = task.params
        self.most_lanes = params.num_beams
        self._task = task
        # One for all beams: it goes to where the history is that it is asked about.
        more = () if task.grammar is None else (task.grammar.constraint(),)
        self._sampler = Sampler(params, task.vocab_size, task.end_tokens, more=more)
        self._ends = Ends(task)
        self._prompt: Lane | None = lane
        self._groups = [_Group(task, params.num_beams // params.num_beam_groups) for _ in range(params.num_beam_groups)]
        self._reason: FinishReason | None = None if task.limit > 0 else "length"

    @property
    def lanes(self) -> Many[Lane]:
        if self._prompt is not None:
            return (self._prompt,)
        return [beam.lane for group in self._open for beam in group.beams]

    @property
    def reason(self) -> FinishReason | None:
        return self._reason

    def draws(self, lane: Lane) -> tuple[Draw, ...] | None:
        return None

    def advance(self, rows: Many[Rows]) -> list[Event]:
        logprobs = [self._logprobs(row, lane) for row, lane in zip(rows, self.lanes, strict=True)]
        if self._prompt is not None:
            logprobs = logprobs * len(self._groups)
            self._begin(self._prompt)
        used: list[int] = []
        first = 0
        for group in self._open:
            count = len(group.beams)
            chosen = group.choose(logprobs[first : first + count], used, self._ends)
            used += group.advance(chosen)
            first += count
        for group in self._groups:
            if group.done:
                group.close()
        if not self._open:
            self._reason = "stop"
        return []

    def end(self, reason: FinishReason, times: Times) -> list[Event]:
        """Results best first. A search that is broken off gives its beams as they are, behind those that ended."""
        results = [result for group in self._groups for result in group.results]
        if reason != "stop":
            results += self._unfinished() or [Result((), np.float32(0))]
        results.sort(key=lambda result: -result.score)
        events = []
        for index, result in enumerate(results[: self._task.params.num_return_sequences]):
            events += self._told(index, result, reason, times)
        return events

    @property
    def _open(self) -> list[_Group]:
        return [group for group in self._groups if not group.done]

    def _begin(self, prompt: Lane) -> None:
        lanes = [prompt, *(prompt.fork() for _ in self._groups[1:])]
        for group, lane in zip(self._groups, lanes, strict=True):
            group.beams = [_Beam(lane, np.float32(0))]
        self._prompt = None

    def _logprobs(self, row: Rows, lane: Lane) -> Floats:
        assert isinstance(row, np.ndarray)
        shifted = row[0] - row[0].max()
        return self._sampler.scores(shifted - np.log(np.exp(shifted).sum(dtype=np.float32)), lane.history)

    def _unfinished(self) -> list[Result]:
        penalty = self._task.params.length_penalty
        beams = [beam for group in self._open for beam in group.beams]
        found = [(tuple(beam.lane.history.generated.tolist()), beam.score) for beam in beams]
        return [Result(tokens, _penalised(score, max(1, len(tokens)), penalty)) for tokens, score in found]

    def _told(self, index: int, result: Result, reason: FinishReason, times: Times) -> list[Event]:
        answer, texts = Answer(self._task, index), []
        for token in result.tokens:
            event = answer.push(token)
            texts += [] if event is None else [event.text]
            if answer.reason is not None:
                break
        last = answer.end(answer.reason or reason, times, Drafted(), 0, 0)
        assert last.generation is not None
        generation = replace(last.generation, score=float(result.score))
        return [Event("".join(texts) + last.text, None, generation, index)]


def _penalised(score: np.float32, length: int, penalty: float) -> np.float32:
    """The score of a text of that length, with the length penalty."""
    try:
        worth = length**penalty
    except OverflowError:
        worth = math.inf
    return np.float32(score / divisor(worth))
