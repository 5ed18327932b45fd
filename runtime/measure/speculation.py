"""Measure what drafts gain: plain decoding and drafted, in turns, on texts of two kinds.

Random tokens say nothing of how often drafts are right, so that real texts are continued: "story", a beginning that the
model goes on with, where little can be foreseen, and "copy", a passage with the request to repeat it and its first
words, where much can. Passages are from a text that is given, or what the model itself says after a few neutral words.

Both ways run in one loaded model, answer by answer. Plain decoding is the engine without a speculator, not one that is
idle. For every kind of text and temperature drafting begins anew: what it must learn of times and of acceptance is paid
for in what is measured. Time counts from the first token of an answer to its last, with all that the engine does.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.devices.device import Placement
from dsv3c.runtime.engine.generation import Drafted, Generation
from dsv3c.runtime.engine.session import Ints
from dsv3c.runtime.engine.speculation.speculator import Speculator
from dsv3c.runtime.errors import BenchTooLong, TextTooShort
from dsv3c.runtime.measure.windows import Text, beginning
from dsv3c.runtime.model import Model, Serving
from dsv3c.runtime.progress import Progress, Silent

STORY, COPY = "story", "copy"
OPENINGS = ("Once upon a time", "In the morning", "It was said that", "The house at the end of the road")
REQUEST = "\n\nThe same once more, word for word:\n\n"
HEAD = 16  # tokens of a passage that a story begins with, and a copy
PASSAGES = 4  # of a text


@dataclass(frozen=True)
class Settings:
    """How much is generated: answers of `new_tokens` to every prompt, `repetitions` times in each way."""

    new_tokens: int = 128
    repetitions: int = 5
    temperatures: tuple[float, ...] = (0.0, 1.0)


@dataclass(frozen=True)
class Comparison:
    """One kind of text at one temperature.

    plain, drafted: tokens a second of each repetition, over all prompts. drafts: of all drafted answers, of which
    `answers` were given and `same` have the very tokens of the plain ones. tokens: of all drafted answers, the first
    ones left out. fault: what ended drafting.
    """

    kind: str
    temperature: float
    plain: tuple[float, ...]
    drafted: tuple[float, ...]
    drafts: Drafted
    tokens: int
    answers: int
    same: int
    fault: str | None = None

    @property
    def ratio(self) -> float:
        """Median over the repetitions."""
        return statistics.median(b / a for a, b in zip(self.plain, self.drafted, strict=True))

    @property
    def drafts_a_step(self) -> float:
        """Over the steps that had any."""
        return self.drafts.proposed / self.drafts.steps if self.drafts.steps else 0.0

    @property
    def share_drafted(self) -> float:
        """Of the tokens, those that were drafts."""
        return self.drafts.accepted / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class _Answer:
    generation: Generation
    seconds: float

    @property
    def tokens(self) -> int:
        """That came after the first."""
        return len(self.generation.token_ids) - 1


def load(path: str | os.PathLike[str], speculate: str | os.PathLike[str], placement: Placement) -> Model:
    """Without a prefix cache: both ways read each prompt. Raises what loading raises."""
    return Model.load(Artifact.open(path), placement, Serving(speculate=speculate, prefix_cache=False))


def compare(model: Model, settings: Settings, text: Text | None, progress: Progress | None = None) -> list[Comparison]:
    """All kinds of text at all temperatures. Raises BenchTooLong, TextTooShort, TokenizerMissing."""
    told = progress or Silent()
    begin, request = beginning(model.tokenizer), np.array(model.tokenizer.encode_plain(REQUEST), np.int32)
    length = HEAD + settings.new_tokens  # of a passage: its copy is an answer
    needed = begin.size + length + request.size + length
    if needed > model.context:
        raise BenchTooLong(needed=needed, limit=model.context)
    passages = _own_passages(model, begin, length, told) if text is None else _passages(model, text, length)
    prompts = {
        STORY: [np.concatenate([begin, passage[:HEAD]]) for passage in passages],
        COPY: [np.concatenate([begin, passage, request, passage[:HEAD]]) for passage in passages],
    }
    return [
        _comparison(model, settings, kind, temperature, prompts[kind], told)
        for kind, temperature in itertools.product(prompts, settings.temperatures)
    ]


def _passages(model: Model, text: Text, length: int) -> list[Ints]:
    """From places of the text that are equally far apart."""
    tokens = np.array(model.tokenizer.encode_plain(text.content), np.int32)
    if tokens.size < length:
        raise TextTooShort(name=text.name, tokens=tokens.size, least=length)
    count = min(PASSAGES, tokens.size // length)
    starts = [index * (tokens.size - length) // max(1, count - 1) for index in range(count)]
    return [tokens[start : start + length] for start in starts]


def _own_passages(model: Model, begin: Ints, length: int, progress: Progress) -> list[Ints]:
    progress.stage("texts of the model's own", len(OPENINGS))
    found = []
    for seed, opening in enumerate(OPENINGS):
        first = np.array(model.tokenizer.encode_plain(opening), np.int32)[:HEAD]
        answer = _answer(model, np.concatenate([begin, first]), length - first.size, 1.0, seed)
        found.append(np.concatenate([first, np.array(answer.generation.token_ids, np.int32)]))
        progress.advance()
    return found


def _comparison(
    model: Model, settings: Settings, kind: str, temperature: float, prompts: Many[Ints], progress: Progress
) -> Comparison:
    scheduler = model.engine.scheduler
    given = scheduler.speculator
    assert given is not None, "loaded to speculate"
    progress.stage(f"{kind} at temperature {temperature:g}", settings.repetitions)
    plain, drafted = list[list[_Answer]](), list[list[_Answer]]()
    try:
        for warm in (None, Speculator(model.session, given.drafter)):  # pages of weights that nobody has read yet
            scheduler.speculator = warm
            _answer(model, prompts[0], settings.new_tokens, temperature, 0)
        speculator = Speculator(model.session, given.drafter)
        for repetition in range(settings.repetitions):
            plain.append([])
            drafted.append([])
            for index, prompt in enumerate(prompts):
                seed = repetition * len(prompts) + index
                ways = ((None, plain[-1]), (speculator, drafted[-1]))
                for way, answers in ways if seed % 2 else reversed(ways):  # what comes second may find a warmer machine
                    scheduler.speculator = way
                    answers.append(_answer(model, prompt, settings.new_tokens, temperature, seed))
            progress.advance()
    finally:
        scheduler.speculator = given
    pairs = list(zip(itertools.chain(*plain), itertools.chain(*drafted), strict=True))
    return Comparison(
        kind,
        temperature,
        plain=tuple(map(_speed, plain)),
        drafted=tuple(map(_speed, drafted)),
        drafts=speculator.drafted,
        tokens=sum(answer.tokens for _, answer in pairs),
        answers=len(pairs),
        same=sum(one.generation.token_ids == other.generation.token_ids for one, other in pairs),
        fault=None if speculator.fault is None else str(speculator.fault),
    )


def _speed(answers: Many[_Answer]) -> float:
    return sum(answer.tokens for answer in answers) / sum(answer.seconds for answer in answers)


def _answer(model: Model, prompt: Ints, count: int, temperature: float, seed: int) -> _Answer:
    """All `count` tokens, whatever they are."""
    one: dict[str, Any] = {"num_return_sequences": 1, "num_beams": 1, "ignore_eos": True, "stop": ()}  # no defaults
    events = model.stream(prompt, temperature=temperature, seed=seed, max_new_tokens=count, **one)
    next(events)
    start = time.perf_counter()
    *_, last = events
    seconds = time.perf_counter() - start
    if last.generation is None:
        raise AssertionError("a stream ends with its generation")
    return _Answer(last.generation, seconds)
