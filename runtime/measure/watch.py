"""A device that notes what it runs, to be put between a session and the device."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.costs import StepShape
from dsv3c.runtime.devices.device import Device, Floats


@dataclass
class Watch:
    """A device that notes what it runs, and when `timed` how long each call takes.

    Sequences of a step are taken to be alike, in length and in what they are given.
    """

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
        sequences = int(self.inputs["sequence"][tokens - 1]) + 1
        self.steps.append(StepShape(entry, tokens, rows, int(self.inputs["positions"][0]), sequences))
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
