"""The Metal device: kernels, weights, results and caches in the memory of a Mac's GPU, one command buffer a step.

TVM's runtime gives kernels whole buffers, never a place inside of one. So what shares the arena in other devices has a
buffer for each of the arena's offsets here, as large as the largest result that starts there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.artifact import WEIGHTS, Artifact
from dsv3c.runtime.artifact.dispatches import AXES, Form, Table
from dsv3c.runtime.artifact.plan import Plan
from dsv3c.runtime.devices.cpu.library import copied
from dsv3c.runtime.devices.device_memory import Needs, disjoint, require_countable
from dsv3c.runtime.devices.dispatch import Launch, Steps, table_of, usable
from dsv3c.runtime.devices.memory import empty_rows, map_descriptor
from dsv3c.runtime.devices.metal.gpu import Gpu, address, choose
from dsv3c.runtime.errors import (
    DeviceLacks,
    DeviceLost,
    KernelMissing,
    LibraryInvalid,
    ManifestInvalid,
)

CAPABILITIES: frozenset[str] = frozenset()  # forms ask for no more than every GPU of Apple silicon has
MOST_OPERANDS = 31  # buffers that a kernel of Metal may have
CHUNK = 32 << 20  # bytes that are copied at once; TVM's runtime takes as much again to copy them
PAGE = 16 << 10  # Metal's buffers are whole pages


def needs(plan: Plan, slots: int) -> Needs:
    def total(kind: str) -> int:
        return sum(_paged(buffer.bytes) for buffer in plan.buffers if buffer.kind == kind)

    results = sum(map(_paged, _result_bytes(plan).values()))
    cache = sum(_paged(slots * cache.slot_bytes) for cache in plan.caches)
    return Needs(total("weight"), cache, results, total("input"), CHUNK)


class MetalDevice:
    """Implements `Device`. wanted: the number of the GPU. open_gpu: how it is come by.

    Raises DeviceApiMissing, WrongMachine, NoDeviceFound, UnknownDevice, DeviceLacks, DeviceMemoryShort,
    DeviceMemoryRefused, DeviceLost, KernelMissing, LibraryInvalid, also for a kernel that Apple's compiler refuses, and
    faults of the artifact.
    """

    forks = False  # the driver's context is the parent's

    prefill_min_tokens: int | None = None

    def __init__(
        self, artifact: Artifact, slots: int, wanted: str | None, open_gpu: Callable[[str | None], Gpu] = choose
    ) -> None:
        plan = self._plan = artifact.plan
        self.slots = slots
        self._gpu = open_gpu(wanted)
        table = usable(table_of(plan), CAPABILITIES)
        _require_operands(self._gpu, plan)
        require_countable(self._gpu.name, plan, slots)
        self.needs = needs(plan, slots)
        self.needs.require(self._gpu.name, self._gpu.available())
        self._kernels = _Kernels(self._gpu, artifact, table)
        self._buffers = _buffers(self._gpu, plan, slots)
        self._addresses = {index: address(buffer) for index, buffer in self._buffers.items()}
        self.inputs: Mapping[str, NDArray[Any]] = {
            name: np.zeros(plan.buffers[index].size, plan.buffers[index].dtype) for name, index in plan.inputs.items()
        }
        self._inputs = {name: self._gpu.host(array) for name, array in self.inputs.items()}
        self._outputs: dict[int, NDArray[Any]] = {}
        self._steps = {name: Steps(plan, table, entry) for name, entry in plan.entries.items()}
        self._grids: NDArray[np.uint32] = np.zeros(
            (max(steps.calls for steps in self._steps.values()), AXES), np.uint32
        )
        self._caches = [self._buffers[i] for i, buffer in enumerate(plan.buffers) if buffer.kind == "cache"]
        _zero(self._gpu, self._caches)
        _upload(self._gpu, artifact, self._buffers)

    def run(self, entry: str) -> None:
        for _ in self._launched(entry):
            pass
        self._gpu.wait(f"the entry {entry}")

    def run_timed(self, entry: str) -> NDArray[np.float64]:
        """As `run`; seconds of each call with its way to the GPU and back, 0 for those that were not launched."""
        seconds, before = np.zeros(self._steps[entry].calls), 0.0
        for launch in self._launched(entry, begin=lambda: self._gpu.wait(f"the inputs of {entry}")):
            self._gpu.wait(launch.form.function)
            now = time.perf_counter()
            seconds[launch.call] = now - (before or self._began)
            before = now
        return seconds

    def output(self, entry: str, name: str) -> NDArray[Any]:
        """As of `Device`; rows behind those of the step are of earlier ones."""
        output = self._plan.entries[entry].outputs[name]
        index, control = output.buffer, self.inputs["control"]
        buffer = self._plan.buffers[index]
        if index not in self._outputs:
            self._outputs[index] = np.zeros(buffer.size, buffer.dtype)
        size = self._plan.row_bytes(output) * output.count(int(control[0]), int(control[1]))
        if size:
            front = self._outputs[index].view(np.uint8)[:size]
            self._copy(self._gpu.part(self._buffers[index], 0, size), self._gpu.host(front), f"the output {name}")
        return self._outputs[index]

    def experts(self, entry: str) -> Mapping[int, NDArray[np.int32]]:
        sizes, found = self._plan.expert_ids(entry, int(self.inputs["control"][0])), dict[int, NDArray[np.int32]]()
        for layer, (index, size) in sizes.items():
            ids = found[layer] = np.empty(size, np.int32)
            device = self._gpu.part(self._buffers[index], 0, ids.nbytes)
            self._copy(device, self._gpu.host(ids), "the experts of a step")
        self._gpu.wait("the experts of a step")
        return found

    def copy_slots(self, source: int, target: int, count: int) -> None:
        for start, slots in disjoint(source, target, count):
            for cache, buffer in zip(self._plan.caches, self._caches, strict=True):
                row, size = cache.slot_bytes, slots * cache.slot_bytes
                taken = self._gpu.part(buffer, (source + start) * row, size)
                self._copy(taken, self._gpu.part(buffer, (target + start) * row, size), "a copy of cache pages")
        self._gpu.wait("a copy of cache pages")

    def read_slots(self, start: int, count: int) -> Mapping[str, NDArray[Any]]:
        rows = {cache.name: empty_rows(cache, count) for cache in self._plan.caches}
        for host, device in self._pairs(start, rows):
            self._copy(device, host, "cache pages that are read")
        self._gpu.wait("cache pages that are read")
        return rows

    def write_slots(self, start: int, rows: Mapping[str, NDArray[Any]]) -> None:
        # DLPack takes no array that may not be written.
        whole = {name: np.require(array, requirements=("C", "W")) for name, array in rows.items()}
        for host, device in self._pairs(start, whole):
            self._copy(host, device, "cache pages that are written")
        self._gpu.wait("cache pages that are written")

    def _pairs(self, start: int, rows: Mapping[str, NDArray[Any]]) -> list[tuple[Any, Any]]:
        """(rows on the host, their place in the cache) of each cache, as TVM copies them."""
        return [
            (self._gpu.host(array.reshape(-1)), self._gpu.part(buffer, start * cache.slot_bytes, array.nbytes))
            for cache, buffer in zip(self._plan.caches, self._caches, strict=True)
            if (array := rows[cache.name]).size
        ]

    def report(self) -> dict[str, Any]:
        return {
            "device": "metal",
            "name": self._gpu.name,
            **self.needs.report(),
            "cache_slots": self.slots,
            "memory_available": self._gpu.available(),
        }

    def close(self) -> None:
        self.inputs, self._inputs, self._addresses = {}, {}, {}
        self._caches = []
        self._buffers = {}

    def _launched(self, entry: str, begin: Callable[[], None] = lambda: None) -> Any:
        """The launches of a step, each when it is on its way."""
        plan, control = self._plan, self.inputs["control"]
        steps, tokens, rows = self._steps[entry], int(control[0]), int(control[1])
        launches = steps.launches(tokens, rows)
        steps.grids(tokens, rows, self._grids)
        for name in {plan.buffers[i].name for launch in launches for i in launch.buffers} & self.inputs.keys():
            self._copy(self._inputs[name], self._buffers[plan.inputs[name]], f"the input {name}")
        begin()
        self._began = time.perf_counter()
        for launch, grid in zip(launches, self._grids.tolist(), strict=False):
            self._launch(launch, grid)
            yield launch

    def _launch(self, launch: Launch, grid: list[int]) -> None:
        function = self._kernels.function(launch.form)
        operands = [self._addresses[index] for index in launch.buffers]
        try:
            function(*operands, *grid[: len(launch.form.grid)], self._kernels.threads)
        except Exception as error:
            raise DeviceLost(device=self._gpu.name, what=f"{launch.form.function} ({error})") from error

    def _copy(self, source: Any, target: Any, what: str) -> None:
        try:
            self._gpu.copy(source, target)
        except Exception as error:
            raise DeviceLost(device=self._gpu.name, what=f"{what} ({error})") from error


class _Kernels:
    """The functions of an artifact's library, each compiled when it is first launched."""

    def __init__(self, gpu: Gpu, artifact: Artifact, table: Table) -> None:
        if not artifact.manifest.target.levels:
            raise ManifestInvalid(where="manifest.json: target.levels", reason="names no library")
        self.threads = table.threads
        file = artifact.manifest.target.levels[0].file
        self._path = artifact.folder / file
        with copied(artifact.checked_bytes(file), self._path.suffix) as library:
            self._module = gpu.load(library)
        self._functions: dict[str, Any] = {}

    def function(self, form: Form) -> Any:
        """Takes the addresses of the operands, the grid axis by axis, and the threads of a workgroup."""
        name = form.function
        if name not in self._functions:
            try:
                self._functions[name] = self._module.get_function(name, query_imports=True)
            except AttributeError as error:
                raise KernelMissing(path=self._path, name=name) from error
            except Exception as error:
                raise LibraryInvalid(path=self._path, reason=f"{name}: {error}") from error
        return self._functions[name]


def _require_operands(gpu: Gpu, plan: Plan) -> None:
    most = max((len(buffers) for entry in plan.entries.values() for _, buffers in entry.calls), default=0)
    if most > MOST_OPERANDS:
        lacks = f"a kernel has {most} operands, Metal takes {MOST_OPERANDS}"
        raise DeviceLacks(device=gpu.name, lacks=lacks, hint_text="compile for another target")


def _buffers(gpu: Gpu, plan: Plan, slots: int) -> dict[int, Any]:
    """A device buffer for each buffer of the plan; results that start at one offset of the arena share theirs."""
    arena = {offset: gpu.allocate(_words(size), "the activations") for offset, size in _result_bytes(plan).items()}
    found = {}
    for index, buffer in enumerate(plan.buffers):
        if buffer.kind == "arena":
            found[index] = arena[buffer.offset]
        elif buffer.kind == "cache":
            found[index] = gpu.allocate(_words(slots * buffer.slot_bytes), "the cache")
        else:
            found[index] = gpu.allocate(_words(buffer.bytes), f"{buffer.kind} {buffer.name}")
    return found


def _result_bytes(plan: Plan) -> dict[int, int]:
    """Bytes of the largest result by its offset in the arena."""
    sizes: dict[int, int] = {}
    for buffer in plan.buffers:
        if buffer.kind == "arena":
            sizes[buffer.offset] = max(sizes.get(buffer.offset, 0), buffer.bytes)
    return sizes


def _words(size: int) -> int:
    return -(-size // 4) * 4


def _paged(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _zero(gpu: Gpu, buffers: list[Any]) -> None:
    """Memory may come with what another program left in it."""
    zeros = np.zeros(min(CHUNK, max((buffer.shape[0] for buffer in buffers), default=0)), np.uint8)
    for buffer in buffers:
        _fill(gpu, buffer, lambda start, size: zeros[:size])


def _upload(gpu: Gpu, artifact: Artifact, buffers: Mapping[int, Any]) -> None:
    """The weights from the mapped file."""
    path, size = artifact.folder / WEIGHTS, artifact.manifest.files[WEIGHTS].size
    data = map_descriptor(artifact.open_weights(), path, size)
    for index, buffer in enumerate(artifact.plan.buffers):
        if buffer.kind != "weight":
            continue
        first = artifact.tensors[buffer.tensor].offset + buffer.offset
        _fill(gpu, buffers[index], _pieces(data[first : first + buffer.bytes]))


def _pieces(tensor: NDArray[np.uint8]) -> Callable[[int, int], NDArray[np.uint8]]:
    """`size` bytes from `start` on; zeros behind the tensor's end, which may lie in the middle of a word."""

    def piece(start: int, size: int) -> NDArray[np.uint8]:
        found = tensor[start : start + size]
        return found if found.size == size else np.pad(found, (0, size - found.size))

    return piece


def _fill(gpu: Gpu, buffer: Any, piece: Callable[[int, int], NDArray[np.uint8]]) -> None:
    total = buffer.shape[0]
    for start in range(0, total, CHUNK):
        size = min(CHUNK, total - start)
        gpu.copy(gpu.host(piece(start, size)), gpu.part(buffer, start, size))
        gpu.wait("the upload of the weights")  # the copy of the host's memory is free again
