"""What kernels of a step took, and how much work the plan says they are."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.costs import StepShape, Work
from dsv3c.runtime.artifact.plan import Plan
from dsv3c.runtime.artifact.work import work_of

_LAYER = re.compile(r"^model\.layers\.\d+\.|~\d+")
_BRACES = re.compile(r"\{.*\}")


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
    The rest is the session's, which writes the inputs. launches: kernel calls.
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


@dataclass(frozen=True)
class Run:
    """The steps of a repetition, the seconds of each call of each step, and of all steps on the device."""

    steps: list[StepShape]
    calls: list[NDArray[np.float64]]
    seconds: float


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


def summary(plan: Plan, name: str, layers: int, runs: list[Run], seconds: list[float]) -> Breakdown:
    spent: dict[tuple[str, str], list[float]] = {}
    calls: dict[tuple[str, str], int] = {}
    works: dict[tuple[str, str], Work] = {}
    for number, run in enumerate(runs):
        for step, times in zip(run.steps, run.calls, strict=True):
            for call, one in zip(plan.entries[step.entry].calls, times, strict=True):
                key = call[0], weight_label(plan, call[1])
                spent.setdefault(key, [0.0] * len(runs))[number] += float(one)
                calls[key] = calls.get(key, 0) + 1
                works[key] = works.get(key, Work()) + work_of(plan, step, call)
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
