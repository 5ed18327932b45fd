"""Measure a model: prefill and decode at chosen depths of the context, and each kernel of a step.

A test is named as llama-bench names it: pp512 reads 512 tokens at once, tg128 generates 128 one by one, and `@ d4096`
means behind 4096 tokens that are in the cache already, not counted. `@ b16` decodes 16 sequences side by side, a token
of each in every step. Token ids are random, other ones in each sequence, as are the tokens in the cache, which were
really read. Every test runs once as a warm-up and then `repetitions` times.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.artifact.costs import Work
from dsv3c.runtime.artifact.plan import Plan
from dsv3c.runtime.artifact.work import steps_work
from dsv3c.runtime.devices.cpu.library import Library
from dsv3c.runtime.devices.device import Placement
from dsv3c.runtime.devices.split import place
from dsv3c.runtime.engine.cache import Sequence
from dsv3c.runtime.engine.session import Ints, Request, Session
from dsv3c.runtime.errors import BenchBatchTooLarge, BenchCacheTooLarge, BenchTooLong
from dsv3c.runtime.measure.breakdown import Breakdown, Run, summary
from dsv3c.runtime.measure.limits import Limits, measure_loaded
from dsv3c.runtime.measure.watch import Watch
from dsv3c.runtime.progress import Progress, Silent

_SEED = 0
_MOST_SLOTS = 2**31 - 1  # kernels count them in 32 bits


@dataclass(frozen=True)
class Settings:
    """Prefills of each of `prompts` tokens and decodes of each of `generated`, at each of `depths`; decodes with each
    of `batches` sequences side by side."""

    prompts: tuple[int, ...] = (512,)
    generated: tuple[int, ...] = (128,)
    depths: tuple[int, ...] = (0,)
    repetitions: int = 5
    batches: tuple[int, ...] = (1,)

    @property
    def context(self) -> int:
        """Tokens of the longest test, its depth included."""
        return max(self.depths) + max((*self.prompts, *self.generated), default=0)

    @property
    def sequences(self) -> int:
        """Of the largest test."""
        return max(self.batches) if self.generated else 1

    def pages(self, page_size: int) -> int:
        """Of the cache: for the longest test, and for what further sequences generate beside it."""
        longest_decode = max(self.depths) + max(self.generated, default=0)
        return -(-self.context // page_size) + (self.sequences - 1) * -(-longest_decode // page_size)


@dataclass(frozen=True)
class Case:
    """What is measured: `kind` "pp" or "tg", tokens of each sequence, behind `depth` others of its own."""

    kind: str
    tokens: int
    depth: int
    sequences: int = 1

    @property
    def name(self) -> str:
        batch = f" @ b{self.sequences}" if self.sequences > 1 else ""
        return f"{self.kind}{self.tokens}{batch}" + (f" @ d{self.depth}" if self.depth else "")


@dataclass(frozen=True)
class Result(Case):
    """One test: seconds of each repetition, the work of one (None when the plan has no costs)."""

    seconds: tuple[float, ...] = ()
    work: Work | None = None

    @property
    def all_tokens(self) -> int:
        """Of all sequences."""
        return self.tokens * self.sequences

    @property
    def speeds(self) -> list[float]:
        """Tokens a second of each repetition, of all sequences together."""
        return [self.all_tokens / seconds for seconds in self.seconds]

    @property
    def median(self) -> float:
        return statistics.median(self.speeds)

    @property
    def deviation(self) -> float:
        """Standard deviation of the speeds; 0 for a single one."""
        return statistics.stdev(self.speeds) if len(self.seconds) > 1 else 0.0

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)


class Bench:
    """One artifact on one device, to be measured; a context manager.

    Raises what loading raises, or BenchTooLong, BenchBatchTooLarge, BenchCacheTooLarge.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: Settings,
        placement: Placement | None = None,
    ) -> None:
        artifact = Artifact.open(path)
        plan = artifact.plan
        _check(settings, plan)
        self.settings = settings
        slots = settings.pages(plan.page_size) * plan.page_size
        self.artifact, self.device = place(artifact, slots, placement or Placement())
        self._watch = Watch(self.device)
        self._session = Session(self.artifact.plan, self._watch, artifact.manifest.vocab_size)
        self._random = np.random.default_rng(_SEED)

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.device.close()

    def limits(self, progress: Progress | None = None) -> Limits:
        """The machine's limits, with the library and the threads that the model runs on."""
        (progress or Silent()).stage("the machine's limits")
        library: Library | None = getattr(self.device, "library", None)
        return Limits() if library is None else measure_loaded(library.loaded)

    def results(self, progress: Progress | None = None) -> list[Result]:
        """All tests, by depth, prefills first."""
        told = progress or Silent()
        return [self._result(sequences, case, told) for sequences, case in self._cases(told)]

    def breakdowns(self, progress: Progress | None = None) -> list[Breakdown]:
        """A prefill of the first size and decodes of the first size, by kernel, at each depth."""
        told = progress or Silent()
        firsts = {("pp", size) for size in self.settings.prompts[:1]} | {("tg", n) for n in self.settings.generated[:1]}
        cases = ((sequences, case) for sequences, case in self._cases(told) if (case.kind, case.tokens) in firsts)
        return [self._breakdown(sequences, case, told) for sequences, case in cases]

    def _cases(self, progress: Progress) -> Iterator[tuple[Many[Sequence], Case]]:
        """Each test, with its sequences filled to its depth; they must be handed back as they were."""
        settings = self.settings
        sizes = [("pp", size, 1) for size in settings.prompts]
        sizes += [("tg", size, batch) for size in settings.generated for batch in settings.batches]
        sequences = [self._session.new_sequence() for _ in range(settings.sequences)]
        try:
            for depth in sorted(set(settings.depths)):
                self._fill(sequences, depth, progress)
                for kind, tokens, batch in sizes:
                    yield sequences[:batch], Case(kind, tokens, depth, batch)
        finally:
            for sequence in sequences:
                sequence.close()

    def _fill(self, sequences: Many[Sequence], depth: int, progress: Progress) -> None:
        if depth <= sequences[0].length:
            return
        progress.stage(f"filling the cache to {depth}", len(sequences))
        for sequence in sequences:
            self._run([Request(sequence, self._ids(depth - sequence.length), "last")])
            progress.advance()

    def _result(self, sequences: Many[Sequence], case: Case, progress: Progress) -> Result:
        run = self._runner(case.kind)
        progress.stage(case.name, self.settings.repetitions + 1)
        seconds = []
        for _ in range(self.settings.repetitions + 1):
            ids = self._ids(len(sequences), case.tokens)
            self._watch.clear()
            start = time.perf_counter()
            run(sequences, ids)
            seconds.append(time.perf_counter() - start)
            _truncate(sequences, case.depth)
            progress.advance()
        work = steps_work(self.artifact.plan, self._watch.steps)
        return Result(**vars(case), seconds=tuple(seconds[1:]), work=work)

    def _breakdown(self, sequences: Many[Sequence], case: Case, progress: Progress) -> Breakdown:
        # A decode repeats with each of its steps.
        count, size = (self.settings.repetitions, case.tokens) if case.kind == "pp" else (case.tokens, 1)
        progress.stage(f"{case.name} by kernel", count + 1)
        self._watch.timed = True
        runs, seconds = [], []
        try:
            for _ in range(count + 1):
                ids = self._ids(len(sequences), size)
                self._watch.clear()
                start = time.perf_counter()
                self._feed(sequences, ids)
                seconds.append(time.perf_counter() - start)
                runs.append(Run(self._watch.steps, self._watch.calls, sum(self._watch.seconds)))
                if case.kind == "pp" or len(runs) == 1:
                    _truncate(sequences, case.depth)
                progress.advance()
        finally:
            self._watch.timed = False
            _truncate(sequences, case.depth)
        part = "" if case.kind == "pp" else "one token of " if case.sequences == 1 else "one step of "
        cached = len({cache.layer for cache in self.artifact.plan.caches})
        layers = int(self.artifact.manifest.model.get("num_hidden_layers", cached))
        return summary(self.artifact.plan, part + case.name, layers, runs[1:], seconds[1:])

    def _runner(self, kind: str) -> Callable[[Many[Sequence], Ints], None]:
        return self._feed if kind == "pp" else self._decode

    def _feed(self, sequences: Many[Sequence], ids: Ints) -> None:
        """ids [sequences, n]: their next tokens. The logits of the last ones are computed, and left where they are."""
        self._run([Request(sequence, row, "last") for sequence, row in zip(sequences, ids, strict=True)])

    def _decode(self, sequences: Many[Sequence], ids: Ints) -> None:
        for index in range(ids.shape[1]):
            self._feed(sequences, ids[:, index : index + 1])

    def _run(self, requests: Many[Request]) -> None:
        for _ in self._session.chunks(requests):
            pass

    def _ids(self, *shape: int) -> Ints:
        return self._random.integers(0, self.artifact.manifest.vocab_size, shape, np.int32)


def _check(settings: Settings, plan: Plan) -> None:
    if settings.context > plan.context:
        raise BenchTooLong(needed=settings.context, limit=plan.context)
    bounds = plan.bounds
    most = min(bounds.S, bounds.R, bounds.T)
    if settings.sequences > most:
        raise BenchBatchTooLarge(batch=settings.sequences, limit=most)
    slots = settings.pages(plan.page_size) * plan.page_size
    if slots > _MOST_SLOTS:
        raise BenchCacheTooLarge(needed=slots, limit=_MOST_SLOTS)


def _truncate(sequences: Many[Sequence], depth: int) -> None:
    for sequence in sequences:
        sequence.truncate(depth)
