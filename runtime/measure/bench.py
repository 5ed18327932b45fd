"""Measure a model: prefill and decode at chosen depths of the context, and each kernel of a step.

A test is named as llama-bench names it: pp512 reads 512 tokens at once, tg128 generates 128 one by one, and `@ d4096`
means behind 4096 tokens that are in the cache already, not counted. Token ids are random, as are the tokens in the
cache, which were really read. Every test runs once as a warm-up and then `repetitions` times.
"""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.artifact.costs import Cost, StepShape, Work, call_work, total
from dsv3c.runtime.artifact.plan import Plan
from dsv3c.runtime.devices.cpu.library import Library
from dsv3c.runtime.devices.device import Device, Floats, Placement
from dsv3c.runtime.devices.split import place
from dsv3c.runtime.engine.cache import Sequence
from dsv3c.runtime.engine.session import Ints, Request, Session
from dsv3c.runtime.errors import BenchTooLong
from dsv3c.runtime.measure.limits import Limits, measure_loaded
from dsv3c.runtime.progress import Progress, Silent

_SEED = 0
_LAYER = re.compile(r"^model\.layers\.\d+\.|~\d+")
_BRACES = re.compile(r"\{.*\}")


@dataclass(frozen=True)
class Settings:
    """Prefills of each of `prompts` tokens and decodes of each of `generated`, at each of `depths`."""

    prompts: tuple[int, ...] = (512,)
    generated: tuple[int, ...] = (128,)
    depths: tuple[int, ...] = (0,)
    repetitions: int = 5

    @property
    def context(self) -> int:
        """Tokens of the longest test, its depth included."""
        return max(self.depths) + max((*self.prompts, *self.generated), default=0)


@dataclass(frozen=True)
class Result:
    """One test: `kind` "pp" or "tg", seconds of each repetition, the work of one (None when the plan has no costs)."""

    kind: str
    tokens: int
    depth: int
    seconds: tuple[float, ...]
    work: Work | None

    @property
    def name(self) -> str:
        return f"{self.kind}{self.tokens}" + (f" @ d{self.depth}" if self.depth else "")

    @property
    def speeds(self) -> list[float]:
        """Tokens a second of each repetition."""
        return [self.tokens / seconds for seconds in self.seconds]

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


@dataclass(frozen=True)
class Operation:
    """Calls of one kernel with one kind of weight in a step: their number, seconds together, work together."""

    kernel: str
    weight: str
    calls: int
    seconds: float
    work: Work | None


@dataclass(frozen=True)
class Breakdown:
    """A test's time by kernel, medians over repetitions (for a decode: over its steps).

    seconds: of a repetition as the caller sees it. kernels: spent in kernels. between: lost between them.
    The rest is the session's: inputs written, logits copied. launches: kernel calls.
    """

    name: str
    seconds: float
    kernels: float
    between: float
    launches: int
    layers: int
    operations: tuple[Operation, ...]

    @property
    def session(self) -> float:
        return max(0.0, self.seconds - self.kernels - self.between)


@dataclass
class _Watch:
    """A device that notes what it runs, and when `timed` how long each call takes."""

    device: Device
    timed: bool = False
    steps: list[StepShape] = field(default_factory=list)
    calls: list[NDArray[np.float64]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def forks(self) -> bool:
        return self.device.forks

    @property
    def inputs(self) -> Mapping[str, NDArray[Any]]:
        return self.device.inputs

    @property
    def slots(self) -> int:
        return self.device.slots

    @property
    def prefill_min_tokens(self) -> int | None:
        return self.device.prefill_min_tokens

    def run(self, entry: str) -> None:
        tokens, rows = (int(value) for value in self.inputs["control"][:2])
        self.steps.append(StepShape(entry, tokens, rows, int(self.inputs["positions"][0])))
        if not self.timed:
            self.device.run(entry)
            return
        start = time.perf_counter()
        self.calls.append(self.device.run_timed(entry))
        self.seconds.append(time.perf_counter() - start)

    def run_timed(self, entry: str) -> NDArray[np.float64]:
        return self.device.run_timed(entry)

    def output(self, entry: str, name: str) -> Floats:
        return self.device.output(entry, name)

    def experts(self, entry: str) -> Mapping[int, NDArray[np.int32]]:
        return self.device.experts(entry)

    def copy_slots(self, source: int, target: int, count: int) -> None:
        self.device.copy_slots(source, target, count)

    def read_slots(self, start: int, count: int) -> Mapping[str, NDArray[Any]]:
        return self.device.read_slots(start, count)

    def write_slots(self, start: int, rows: Mapping[str, NDArray[Any]]) -> None:
        self.device.write_slots(start, rows)

    def report(self) -> dict[str, Any]:
        return self.device.report()

    def close(self) -> None:
        self.device.close()

    def clear(self) -> None:
        self.steps, self.calls, self.seconds = [], [], []


class Bench:
    """One artifact on one device, to be measured; a context manager. Raises what loading raises, or BenchTooLong."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: Settings,
        placement: Placement | None = None,
    ) -> None:
        artifact = Artifact.open(path)
        plan = artifact.plan
        if settings.context > plan.context:
            raise BenchTooLong(needed=settings.context, limit=plan.context)
        pages = -(-settings.context // plan.page_size)
        self.settings = settings
        self.artifact, self.device = place(artifact, pages * plan.page_size, placement or Placement())
        self._watch = _Watch(self.device)
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
        return [self._result(*test, told) for test in self._tests(told)]

    def breakdowns(self, progress: Progress | None = None) -> list[Breakdown]:
        """A prefill of the first size and a decode, by kernel, at each depth."""
        told = progress or Silent()
        firsts = {("pp", size) for size in self.settings.prompts[:1]} | {("tg", n) for n in self.settings.generated[:1]}
        return [self._breakdown(*test, told) for test in self._tests(told) if test[1:3] in firsts]

    def _tests(self, progress: Progress) -> Iterable[tuple[Sequence, str, int]]:
        """(sequence filled to a depth, kind, tokens) of each test; the sequence must be handed back as it was."""
        sequence = self._session.new_sequence()
        sizes = [("pp", size) for size in self.settings.prompts] + [("tg", n) for n in self.settings.generated]
        try:
            for depth in sorted(set(self.settings.depths)):
                if depth > sequence.length:
                    progress.stage(f"filling the cache to {depth}")
                    self._feed(sequence, self._ids(depth - sequence.length))
                for kind, tokens in sizes:
                    yield sequence, kind, tokens
        finally:
            sequence.close()

    def _result(self, sequence: Sequence, kind: str, tokens: int, progress: Progress) -> Result:
        depth, run = sequence.length, self._runner(kind)
        progress.stage(_test_name(kind, tokens, depth), self.settings.repetitions + 1)
        seconds = []
        for _ in range(self.settings.repetitions + 1):
            ids = self._ids(tokens)
            self._watch.clear()
            start = time.perf_counter()
            run(sequence, ids)
            seconds.append(time.perf_counter() - start)
            sequence.truncate(depth)
            progress.advance()
        work = steps_work(self.artifact.plan, self._watch.steps)
        return Result(kind, tokens, depth, tuple(seconds[1:]), work)

    def _breakdown(self, sequence: Sequence, kind: str, tokens: int, progress: Progress) -> Breakdown:
        depth = sequence.length
        name = f"{_test_name(kind, tokens, depth)} by kernel"
        # A decode repeats with each of its steps.
        count, size = (self.settings.repetitions, tokens) if kind == "pp" else (tokens, 1)
        progress.stage(name, count + 1)
        self._watch.timed = True
        runs, seconds = [], []
        try:
            for _ in range(count + 1):
                ids = self._ids(size)
                self._watch.clear()
                start = time.perf_counter()
                self._feed(sequence, ids)
                seconds.append(time.perf_counter() - start)
                runs.append(_Run(self._watch.steps, self._watch.calls, sum(self._watch.seconds)))
                if kind == "pp" or len(runs) == 1:
                    sequence.truncate(depth)
                progress.advance()
        finally:
            self._watch.timed = False
            sequence.truncate(depth)
        title = _test_name(kind, tokens, depth) if kind == "pp" else _test_name("one token of tg", tokens, depth)
        cached = len({cache.layer for cache in self.artifact.plan.caches})
        layers = int(self.artifact.manifest.model.get("num_hidden_layers", cached))
        return _summary(self.artifact.plan, title, layers, runs[1:], seconds[1:])

    def _runner(self, kind: str) -> Callable[[Sequence, Ints], None]:
        return self._feed if kind == "pp" else self._decode

    def _feed(self, sequence: Sequence, ids: Ints) -> None:
        self._session.run([Request(sequence, ids, "last")])

    def _decode(self, sequence: Sequence, ids: Ints) -> None:
        for index in range(ids.size):
            self._feed(sequence, ids[index : index + 1])

    def _ids(self, count: int) -> Ints:
        return self._random.integers(0, self.artifact.manifest.vocab_size, count, np.int32)


@dataclass(frozen=True)
class _Run:
    """The steps of a repetition, the seconds of each call of each step, and of all steps on the device."""

    steps: list[StepShape]
    calls: list[NDArray[np.float64]]
    seconds: float


def steps_work(plan: Plan, steps: Iterable[StepShape]) -> Work | None:
    """The work of steps; None when the plan does not state costs."""
    if plan.costs is None:
        return None
    return total(_call_work(plan, step, call) for step in steps for call in plan.entries[step.entry].calls)


def weight_label(plan: Plan, buffers: Iterable[int]) -> str:
    """The name of a call's largest weight without its layer; empty when it has none."""
    weights = [plan.buffers[index] for index in buffers if plan.buffers[index].kind == "weight"]
    if not weights:
        return ""
    name = _LAYER.sub("", max(weights, key=lambda buffer: buffer.bytes).name)
    return _BRACES.sub(_shortened, name).removesuffix(".weight")


def _shortened(match: re.Match[str]) -> str:
    """Of more than two names only their last parts: {experts.*.up_proj,shared_experts.up_proj,…} is up_proj."""
    parts = match[0].strip("{}").split(",")
    if len(parts) <= 2:
        return match[0]
    last = list(dict.fromkeys(part.rpartition(".")[2] for part in parts))
    return "{" + ",".join(last) + "}" if len(last) > 1 else last[0]


def _call_work(plan: Plan, step: StepShape, call: tuple[str, tuple[int, ...]]) -> Work:
    kernel, indices = call
    weight_bytes = sum(plan.buffers[index].bytes for index in set(indices) if plan.buffers[index].kind == "weight")
    return call_work((plan.costs or {}).get(kernel, Cost()), weight_bytes, step)


def _summary(plan: Plan, name: str, layers: int, runs: list[_Run], seconds: list[float]) -> Breakdown:
    spent: dict[tuple[str, str], list[float]] = {}
    calls: dict[tuple[str, str], int] = {}
    works: dict[tuple[str, str], Work] = {}
    for number, run in enumerate(runs):
        for step, times in zip(run.steps, run.calls, strict=True):
            for call, one in zip(plan.entries[step.entry].calls, times, strict=True):
                key = call[0], weight_label(plan, call[1])
                spent.setdefault(key, [0.0] * len(runs))[number] += float(one)
                calls[key] = calls.get(key, 0) + 1
                works[key] = works.get(key, Work()) + _call_work(plan, step, call)
    count = len(runs)
    operations = [
        Operation(
            *key,
            calls=calls[key] // count,
            seconds=statistics.median(times),
            work=None if plan.costs is None else works[key].over(count),
        )
        for key, times in spent.items()
    ]
    inside = [sum(float(times.sum()) for times in run.calls) for run in runs]
    return Breakdown(
        name=name,
        seconds=statistics.median(seconds),
        kernels=statistics.median(inside),
        between=statistics.median(run.seconds - used for run, used in zip(runs, inside, strict=True)),
        launches=sum(calls.values()) // count,
        layers=layers,
        operations=tuple(sorted(operations, key=lambda operation: -operation.seconds)),
    )


def _test_name(kind: str, tokens: int, depth: int) -> str:
    return Result(kind, tokens, depth, (), None).name
