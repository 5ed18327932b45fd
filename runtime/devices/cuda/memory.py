"""Where every buffer of a plan lies in the device's memory, what that takes, and the weights brought there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from ctypes import byref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.artifact import WEIGHTS, Artifact
from dsv3c.runtime.artifact.plan import Plan
from dsv3c.runtime.devices.cuda import driver as cuda
from dsv3c.runtime.devices.cuda.driver import Handle
from dsv3c.runtime.devices.cuda.gpu import Gpu
from dsv3c.runtime.devices.device_memory import Needs
from dsv3c.runtime.devices.memory import cache_offsets, typed
from dsv3c.runtime.errors import FileUnreadable

ALIGNMENT = 256  # of every place: whole lines of the caches
STAGING = 32 << 20  # bytes of each of two staging buffers
GAP = 4096  # a hole in the file up to which two runs of weights are read as one


@dataclass(frozen=True)
class Run:
    """A range of the weights file that holds weights of the plan: bytes [start, end)."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """With padding to whole words and to the next place."""
        return padded(self.end - self.start + self.start % ALIGNMENT)


class Places:
    """Memory of a plan on a device: all of it allocated, and the weights uploaded, when it is made.

    addresses: of each buffer of the plan. inputs: host arrays by name, in pinned memory.
    Raises DeviceMemoryShort before anything is allocated, and as `Gpu`.
    """

    def __init__(self, gpu: Gpu, artifact: Artifact, slots: int) -> None:
        plan, self._gpu = artifact.plan, gpu
        runs = _runs(artifact)
        self._inputs = _Inputs(plan)
        self._cache_offsets, cache_bytes = cache_offsets(plan.caches, slots, ALIGNMENT)
        self.needs = Needs(
            weights=sum(run.size for run in runs),
            cache=cache_bytes,
            activations=padded(plan.arena_bytes),
            inputs=self._inputs.size,
        )
        self.needs.require(gpu.name, gpu.available())
        weights = gpu.allocate(self.needs.weights, "the weights")
        self.cache = gpu.allocate(self.needs.cache, "the cache")
        self.arena = gpu.allocate(self.needs.activations, "the activations")
        self._device_inputs = gpu.allocate(self.needs.inputs, "the inputs")
        self._host_inputs = gpu.pinned(self.needs.inputs, "the inputs")
        starts = _starts(runs, weights)
        self.addresses = [self._address(artifact, index, starts) for index in range(len(plan.buffers))]
        self.inputs: Mapping[str, NDArray[Any]] = {
            plan.buffers[index].name: typed(
                self._host_inputs, self._inputs.offsets[index], plan.buffers[index].dtype, plan.buffers[index].size
            )
            for index in plan.inputs.values()
        }
        _upload(gpu, artifact, [(run, starts[run]) for run in runs])

    def _address(self, artifact: Artifact, index: int, starts: Mapping[Run, int]) -> int:
        buffer = artifact.plan.buffers[index]
        if buffer.kind == "arena":
            return self.arena + buffer.offset
        if buffer.kind == "cache":
            return self.cache_address(buffer.name)
        if buffer.kind == "input":
            return self._device_inputs + self._inputs.offsets[index]
        start = artifact.tensors[buffer.tensor].offset + buffer.offset
        run = next(run for run in starts if run.start <= start < run.end)
        return starts[run] + start - run.start

    def cache_address(self, name: str) -> int:
        return self.cache + self._cache_offsets[name]

    def send_inputs(self, extra: Iterable[tuple[int, int]]) -> None:
        """Copy what every step reads to the device, in one piece, and of further inputs (index, bytes) each."""
        copy, stream = self._gpu.driver.call, self._gpu.stream
        host, device = self._host_inputs.ctypes.data, self._device_inputs
        copy("cuMemcpyHtoDAsync", device, host, self._inputs.common, stream)
        for index, size in extra:
            at = self._inputs.offsets[index]
            copy("cuMemcpyHtoDAsync", device + at, host + at, size, stream)


class _Inputs:
    """Offsets of the inputs: first those of every step, `common` bytes, then those that only some entries read."""

    def __init__(self, plan: Plan) -> None:
        extra = {index for entry in plan.entries.values() for index in entry.inputs.values()}
        order = sorted(plan.inputs.values(), key=lambda index: (index in extra, index))
        self.offsets: dict[int, int] = {}
        self.size = self.common = 0
        for index in order:
            self.offsets[index] = self.size
            self.size += padded(plan.buffers[index].bytes)
            if index not in extra:
                self.common = self.size


def padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _runs(artifact: Artifact) -> list[Run]:
    """Ranges of the file with the plan's weights, those close to each other as one."""
    spans = sorted(
        (start, start + buffer.bytes)
        for buffer in artifact.plan.buffers
        if buffer.kind == "weight"
        for start in [artifact.tensors[buffer.tensor].offset + buffer.offset]
    )
    runs: list[Run] = []
    for start, end in spans:
        if runs and start - runs[-1].end <= GAP:
            runs[-1] = Run(runs[-1].start, max(end, runs[-1].end))
        else:
            runs.append(Run(start, end))
    return runs


def _starts(runs: Iterable[Run], address: int) -> dict[Run, int]:
    """Address of the first byte of each run; it is aligned as in the file."""
    starts = {}
    for run in runs:
        starts[run] = address + run.start % ALIGNMENT
        address += run.size
    return starts


def _upload(gpu: Gpu, artifact: Artifact, runs: Iterable[tuple[Run, int]]) -> None:
    """While the device copies from one staging buffer, the other is filled from the file."""
    pieces = [
        (run.start + at, address + at, min(STAGING, run.end - run.start - at))
        for run, address in runs
        for at in range(0, run.end - run.start, STAGING)
    ]
    size = max((piece[2] for piece in pieces), default=0)
    staging = [gpu.pinned(size, "staging of the weights") for _ in range(2)]
    copied = [Handle(), Handle()]
    for event in copied:
        gpu.driver.call("cuEventCreate", byref(event), cuda.DEFAULT_EVENT)
    try:
        with os.fdopen(artifact.open_weights(), "rb", buffering=0) as file, gpu.guarded("the upload of the weights"):
            for number, (start, address, count) in enumerate(pieces):
                buffer, event = staging[number % 2], copied[number % 2]
                gpu.driver.call("cuEventSynchronize", event)  # what was never recorded counts as done
                _read(file, start, buffer[:count], artifact.folder / WEIGHTS)
                gpu.driver.call("cuMemcpyHtoDAsync", address, buffer.ctypes.data, count, gpu.stream)
                gpu.driver.call("cuEventRecord", event, gpu.stream)
            gpu.driver.call("cuStreamSynchronize", gpu.stream)
    finally:
        for event in copied:
            gpu.driver.raw("cuEventDestroy")(event)
    for buffer in staging:
        gpu.free_pinned(buffer)


def _read(file: BinaryIO, start: int, buffer: NDArray[np.uint8], path: Path) -> None:
    file.seek(start)
    view, done = memoryview(buffer), 0  # type: ignore[arg-type]
    while done < buffer.size:
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise FileUnreadable(path=path, reason=f"it ends at byte {start + done}")
        done += count
