"""The CUDA device: weights, arena and caches in its memory, one graph a choice of launches.

A step is one copy of its inputs, the replay of a graph, one copy of each result, and the wait for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ctypes import byref, c_float
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.artifact.dispatches import AXES, Table
from dsv3c.runtime.artifact.plan import Entry, Output, Plan
from dsv3c.runtime.devices.cuda import driver as cuda
from dsv3c.runtime.devices.cuda.driver import Driver, Handle
from dsv3c.runtime.devices.cuda.gpu import Gpu, Physical, choose, devices, dotted
from dsv3c.runtime.devices.cuda.graphs import LaunchGraph, make_kernels
from dsv3c.runtime.devices.cuda.memory import Places
from dsv3c.runtime.devices.cuda.modules import Module, fitting_level
from dsv3c.runtime.devices.device_memory import disjoint, require_countable
from dsv3c.runtime.devices.dispatch import Key, Steps, table_of, usable
from dsv3c.runtime.devices.memory import empty_rows, typed
from dsv3c.runtime.errors import DeviceLacks

Name = TypeVar("Name", int, str)  # of an array that is copied

CAPABILITIES = {"mma-m16n8k16": (8, 0)}  # what forms of kernels require: the compute capability it came with


def form_capabilities(physical: Physical) -> list[str]:
    """What a device has of CAPABILITIES."""
    return [name for name, least in CAPABILITIES.items() if physical.capability >= least]


class CudaDevice:
    """Implements `Device`. wanted: which device, as `gpu.choose` takes it.

    Raises DeviceApiMissing, NoDeviceFound, UnknownDevice, DeviceLacks, DeviceMemoryShort, DeviceMemoryRefused,
    DeviceLost, DriverFailed, and faults of the artifact.
    """

    forks = False  # the driver's context is the parent's

    prefill_min_tokens: int | None = None

    def __init__(self, artifact: Artifact, slots: int, wanted: str | None) -> None:
        self._plan, self.slots = artifact.plan, slots
        self._closers: list[Callable[[], None]] = []
        self._graphs: dict[tuple[str, Key], LaunchGraph] = {}
        try:
            self._open(artifact, wanted)
        except BaseException:
            self.close()
            raise

    def _open(self, artifact: Artifact, wanted: str | None) -> None:
        plan = self._plan
        asked = table_of(plan)
        driver = Driver()
        physical = choose(devices(driver), wanted)
        table = usable(asked, form_capabilities(physical))
        self._level = fitting_level(artifact.manifest.target.levels, physical)
        self.prefill_min_tokens = self._level.prefill_min_tokens
        self._gpu = gpu = Gpu(driver, physical)
        self._closers.append(gpu.close)
        self._steps = {name: Steps(plan, table, entry) for name, entry in plan.entries.items()}
        _require_limits(gpu, table, list(self._steps.values()))
        require_countable(gpu.name, plan, self.slots)
        kernels = dict.fromkeys(name for entry in plan.entries.values() for name, _ in entry.calls)
        functions = [form.function for name in kernels for form in table.forms[name]]
        module = Module(gpu, artifact, self._level, functions)
        self._closers.append(module.close)
        self._functions, self._threads = module.functions, table.threads
        self._places = Places(gpu, artifact, self.slots)
        self.inputs: Mapping[str, NDArray[Any]] = self._places.inputs
        self._control = self.inputs["control"]
        self._outputs = _Outputs(gpu, plan, self._places)
        calls = max(steps.calls for steps in self._steps.values())
        self._grids: NDArray[np.uint32] = np.empty((calls, AXES), np.uint32)

    def run(self, entry: str) -> None:
        tokens, rows = int(self._control[0]), int(self._control[1])
        steps = self._steps[entry]
        grids = self._grids[: steps.grids(tokens, rows, self._grids)]
        with self._gpu.guarded(f"the entry {entry}"):
            self._gpu.enter()
            graph = self._graphs.get((entry, steps.key(tokens, rows)))
            if graph is None:
                graph = self._record(entry, tokens, rows, grids)
            self._send_inputs(entry, tokens)
            graph.launch(grids)
            self._outputs.fetch(entry, tokens, rows)
            self._gpu.driver.call("cuStreamSynchronize", self._gpu.stream)

    def run_timed(self, entry: str) -> NDArray[np.float64]:
        """As `run`, kernel by kernel; seconds that each call took, 0 for those that were not launched.

        Between two events lies the launch of one kernel, so short kernels show what a launch costs.
        """
        tokens, rows = int(self._control[0]), int(self._control[1])
        steps, driver, stream = self._steps[entry], self._gpu.driver, self._gpu.stream
        launches = steps.launches(tokens, rows)
        steps.grids(tokens, rows, self._grids)
        kernels = make_kernels(self._functions, self._threads, launches, self._places.addresses)
        events = [Handle() for _ in range(len(launches) + 1)]
        seconds = np.zeros(steps.calls)
        with self._gpu.guarded(f"the entry {entry}"):
            self._gpu.enter()
            try:
                for event in events:
                    driver.call("cuEventCreate", byref(event), cuda.DEFAULT_EVENT)
                self._send_inputs(entry, tokens)
                driver.call("cuEventRecord", events[0], stream)
                for kernel, grid, event in zip(kernels, self._grids, events[1:], strict=False):
                    kernel.set_grid(grid)
                    kernel.launch(self._gpu)
                    driver.call("cuEventRecord", event, stream)
                self._outputs.fetch(entry, tokens, rows)
                driver.call("cuStreamSynchronize", stream)
                for launch, begin, end in zip(launches, events, events[1:], strict=False):
                    milliseconds = c_float()
                    driver.call("cuEventElapsedTime", byref(milliseconds), begin, end)
                    seconds[launch.call] = milliseconds.value * 1e-3
            finally:
                for event in events:
                    driver.raw("cuEventDestroy")(event)
        return seconds

    def output(self, entry: str, name: str) -> NDArray[Any]:
        return self._outputs.arrays[entry, name]

    def experts(self, entry: str) -> Mapping[int, NDArray[np.int32]]:
        sizes = self._plan.expert_ids(entry, int(self._control[0]))
        found = {layer: np.empty(size, np.int32) for layer, (_, size) in sizes.items()}
        addresses = {layer: self._places.addresses[index] for layer, (index, _) in sizes.items()}
        self._read_back(found, addresses, "the experts of a step")
        return found

    def copy_slots(self, source: int, target: int, count: int) -> None:
        with self._gpu.guarded("a copy of cache pages"):
            self._gpu.enter()
            for start, size in disjoint(source, target, count):
                for cache in self._plan.caches:
                    first, row = self._places.cache_address(cache.name), cache.slot_bytes
                    to, of = first + (target + start) * row, first + (source + start) * row
                    self._gpu.driver.call("cuMemcpyDtoDAsync", to, of, size * row, self._gpu.stream)

    def read_slots(self, start: int, count: int) -> Mapping[str, NDArray[Any]]:
        rows = {cache.name: empty_rows(cache, count) for cache in self._plan.caches}
        self._read_back(rows, self._cache_addresses(start), "cache pages that are read")
        return rows

    def write_slots(self, start: int, rows: Mapping[str, NDArray[Any]]) -> None:
        addresses, driver, stream = self._cache_addresses(start), self._gpu.driver, self._gpu.stream
        with self._staged({name: rows[name] for name in addresses}, "cache pages that are written") as staged:
            for name, host in staged.items():
                host[:] = np.ascontiguousarray(rows[name]).reshape(-1).view(np.uint8)
                driver.call("cuMemcpyHtoDAsync", addresses[name], host.ctypes.data, host.size, stream)
            driver.call("cuStreamSynchronize", stream)

    def report(self) -> dict[str, Any]:
        self._gpu.enter()
        physical, needs = self._gpu.physical, self._places.needs
        return {
            "device": "cuda",
            "name": physical.name,
            "compute_capability": dotted(physical.capability),
            "driver": self._gpu.driver.dotted_version,
            "level": self._level.name,
            **needs.report(),
            "cache_slots": self.slots,
            "memory_available": self._gpu.available(),
        }

    def close(self) -> None:
        self.inputs = {}
        for graph in self._graphs.values():
            graph.close()
        self._graphs = {}
        for close in reversed(self._closers):
            close()
        self._closers = []

    @contextmanager
    def _staged(self, arrays: Mapping[Name, NDArray[Any]], what: str) -> Iterator[dict[Name, NDArray[np.uint8]]]:
        """Pinned memory for each of the arrays, as bytes; none for empty ones."""
        sizes = {name: array.nbytes for name, array in arrays.items() if array.size}
        self._gpu.enter()
        whole, staged, end = self._gpu.pinned(sum(sizes.values()), what), dict[Name, NDArray[np.uint8]](), 0
        for name, size in sizes.items():
            staged[name] = whole[end : end + size]
            end += size
        with self._gpu.guarded(what):
            try:
                yield staged
            finally:
                self._gpu.free_pinned(whole)

    def _read_back(self, arrays: Mapping[Name, NDArray[Any]], addresses: Mapping[Name, int], what: str) -> None:
        """Fill host arrays with what lies in the device's memory from each one's address on."""
        driver, stream = self._gpu.driver, self._gpu.stream
        with self._staged(arrays, what) as staged:
            for name, host in staged.items():
                driver.call("cuMemcpyDtoHAsync", host.ctypes.data, addresses[name], host.size, stream)
            driver.call("cuStreamSynchronize", stream)
            for name, host in staged.items():
                arrays[name].reshape(-1).view(np.uint8)[:] = host

    def _cache_addresses(self, slot: int) -> dict[str, int]:
        """Where the row of a slot lies in each cache."""
        places = self._places
        return {cache.name: places.cache_address(cache.name) + slot * cache.slot_bytes for cache in self._plan.caches}

    def _record(self, entry: str, tokens: int, rows: int, grids: NDArray[np.uint32]) -> LaunchGraph:
        steps = self._steps[entry]
        launches = steps.launches(tokens, rows)
        kernels = make_kernels(self._functions, self._threads, launches, self._places.addresses)
        graph = self._graphs[entry, steps.key(tokens, rows)] = LaunchGraph(self._gpu, kernels, launches, grids)
        return graph

    def _send_inputs(self, entry: str, tokens: int) -> None:
        plan = self._plan
        extra = [
            (index, plan.buffers[index].bytes // plan.bounds.T * tokens)
            for index in plan.entries[entry].inputs.values()
        ]
        self._places.send_inputs(extra)


class _Outputs:
    """Where the host reads results: pinned memory, copied to behind every step.

    arrays: by (entry, output). Entries share the memory, since only the last step's results are read.
    """

    def __init__(self, gpu: Gpu, plan: Plan, places: Places) -> None:
        self._gpu = gpu
        self._copies: dict[str, list[tuple[int, int, int, Output]]] = {}  # device, host, bytes a row
        offsets = {entry.name: _offsets(plan, entry) for entry in plan.entries.values()}
        size = max(end for _, end in offsets.values())
        host = gpu.pinned(size, "what a step gives")
        self.arrays: dict[tuple[str, str], NDArray[Any]] = {}
        for entry in plan.entries.values():
            copies = []
            for name, output in entry.outputs.items():
                buffer, at = plan.buffers[output.buffer], offsets[entry.name][0][name]
                address = places.addresses[output.buffer]
                copies.append((address, host.ctypes.data + at, plan.row_bytes(output), output))
                self.arrays[entry.name, name] = typed(host, at, buffer.dtype, buffer.size)
            self._copies[entry.name] = copies

    def fetch(self, entry: str, tokens: int, rows: int) -> None:
        """Copy this step's rows of every result."""
        for device, host, row, output in self._copies[entry]:
            size = row * output.count(tokens, rows)
            if size:
                self._gpu.driver.call("cuMemcpyDtoHAsync", host, device, size, self._gpu.stream)


def _offsets(plan: Plan, entry: Entry) -> tuple[dict[str, int], int]:
    """(offset of each output, end of the last)."""
    offsets, end = {}, 0
    for name, output in entry.outputs.items():
        offsets[name] = end
        end += plan.buffers[output.buffer].bytes
    return offsets, end


def _require_limits(gpu: Gpu, table: Table, steps: list[Steps]) -> None:
    """Raises DeviceLacks for workgroups or grids larger than the device's."""
    threads = gpu.attribute(cuda.MAX_THREADS)
    lacks = None
    if table.threads > threads:
        lacks = f"its workgroups have at most {threads} threads, the artifact's have {table.threads}"
    for axis in range(AXES):
        most, needed = gpu.attribute(cuda.MAX_GRID_X + axis), max(step.largest()[axis] for step in steps)
        if needed > most:
            lacks = f"a grid has at most {most} workgroups along {'xyz'[axis]}, the largest step has {needed}"
    if lacks:
        raise DeviceLacks(device=gpu.name, lacks=lacks, hint_text="compile with a lower --max-tokens")
