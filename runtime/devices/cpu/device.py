"""The CPU device: mapped weights, one arena, one cache pool, kernels called in a row by their library.

Everything is resolved when the device opens. Running an entry is one call of C, or a loop over (function, arguments)
pairs through tvm_ffi where calls are timed, fail, or are of a library without that routine; nothing is looked up,
converted or allocated on the way.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.artifact import PLAN, WEIGHTS, Artifact
from dsv3c.runtime.artifact.plan import Buffer, Entry, Plan
from dsv3c.runtime.devices.cpu.calls import Calls
from dsv3c.runtime.devices.cpu.cgroup import memory_limit
from dsv3c.runtime.devices.cpu.cores import check_numa, check_threads
from dsv3c.runtime.devices.cpu.features import (
    MACHINES,
    choose_level,
    cpu_flags,
    machine,
    require_known,
    require_machine,
)
from dsv3c.runtime.devices.cpu.guard import Watch
from dsv3c.runtime.devices.cpu.library import Library
from dsv3c.runtime.devices.memory import Block, cache_offsets, map_descriptor, typed
from dsv3c.runtime.errors import (
    KernelFailed,
    KernelMissing,
    LibraryInvalid,
    MemoryRefused,
    PlanNotOfKernels,
    RuntimeFault,
    WrongMachine,
)

_SYSTEMS = {"linux": "Linux", "darwin": "macOS"}
_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
_MACH_MACHINES = {0x01000007: "x86_64", 0x0100000C: "aarch64"}
_ALIGNMENT = 64

Call = tuple[Any, tuple[Any, ...]]


class CpuDevice:
    """Implements `Device`. numa: see cores.NUMA. Raises WrongMachine, UnknownCapability, IsaNotSupported,
    LibraryInvalid, ThreadsInvalid, NumaInvalid, PlanNotOfKernels, KernelMissing, MemoryRefused; a step raises
    WeightsLost, KernelFailed."""

    forks = True  # its memory is private, and its pool starts threads anew

    def __init__(self, artifact: Artifact, slots: int, threads: int | None, numa: str = "auto") -> None:
        plan = artifact.plan
        require_machine(artifact.manifest.target)
        self._threads, numa = check_threads(threads), check_numa(numa)
        levels = artifact.manifest.target.levels
        require_known({name for level in levels for name in level.requires})
        self._level = choose_level(levels, cpu_flags(), os.environ)
        self.prefill_min_tokens = self._level.prefill_min_tokens
        self.library = _load(artifact, self._level.file)
        self.slots = slots
        self._plan = plan
        _set_threads(self.library, self._threads)
        weights, size = artifact.folder / WEIGHTS, artifact.manifest.files[WEIGHTS].size
        self._nodes = 1 if numa == "off" else _divide(self.library, size)
        # Among several nodes weights are read by the threads of each, when a kernel first meets them.
        self._weights = map_descriptor(artifact.open_weights(), weights, size, read_ahead=self._nodes == 1)
        self._watch = Watch(self.library, self._weights, weights)
        self._arena = Block(plan.arena_bytes, "the activations")
        self._cache_offsets, size = cache_offsets(plan.caches, slots, _ALIGNMENT)
        self._caches = _allocate_caches(size)
        if self._nodes > 1:
            _spread(self.library, (self._arena, self._caches))
        self._arrays = [self._array(artifact, buffer) for buffer in plan.buffers]
        self.inputs: Mapping[str, NDArray[Any]] = {name: self._arrays[i] for name, i in plan.inputs.items()}
        self._path = artifact.folder / PLAN
        self._calls = _resolve(plan, self._arrays, self.library)
        self._structures = Calls(self.library, self._arrays)
        self._at_once = {name: self._structures.entry(entry.calls) for name, entry in plan.entries.items()}

    def run(self, entry: str) -> None:
        at_once, calls = self._at_once[entry], self._calls[entry]
        done = 0 if at_once is None else at_once()
        # What is left: all calls of a library from before there was such a routine, or from the one that failed, which
        # does so again and says why.
        for number in range(done, len(calls)):
            self._call(entry, number)
        self._watch.require()

    def _call(self, entry: str, number: int) -> None:
        function, arguments = self._calls[entry][number]
        try:
            function(*arguments)
        except Exception as error:
            name = self._plan.entries[entry].calls[number][0]
            raise KernelFailed(path=self._path, name=name, reason=_first_line(error)) from error

    def run_timed(self, entry: str) -> NDArray[np.float64]:
        """As `run`; seconds that each call took, in the order of the plan."""
        clock, calls = time.perf_counter, self._calls[entry]
        marks = np.empty((len(calls), 2))
        for mark, (function, arguments) in zip(marks, calls, strict=True):
            mark[0] = clock()
            function(*arguments)
            mark[1] = clock()
        self._watch.require()
        return marks[:, 1] - marks[:, 0]

    def output(self, entry: str, name: str) -> NDArray[np.float32]:
        return self._arrays[self._plan.entries[entry].outputs[name].buffer]

    def experts(self, entry: str) -> Mapping[int, NDArray[np.int32]]:
        sizes = self._plan.expert_ids(entry, int(self.inputs["control"][0]))
        return {layer: self._arrays[index][:size].copy() for layer, (index, size) in sizes.items()}

    def copy_slots(self, source: int, target: int, count: int) -> None:
        for rows in self._rows().values():
            rows[target : target + count] = rows[source : source + count]

    def read_slots(self, start: int, count: int) -> Mapping[str, NDArray[Any]]:
        return {name: rows[start : start + count].copy() for name, rows in self._rows().items()}

    def write_slots(self, start: int, rows: Mapping[str, NDArray[Any]]) -> None:
        for name, kept in self._rows().items():
            kept[start : start + len(rows[name])] = rows[name]

    def report(self) -> dict[str, Any]:
        return {
            "device": "cpu",
            "machine": machine(),
            "level": self._level.name,
            "library": self._level.file,
            "threads": self._threads,
            "nodes": self._nodes,
            "weight_bytes": self._weights.size,
            "arena_bytes": self._arena.size,
            "cache_bytes": self._caches.size,
            "cache_slots": self.slots,
            "huge_page_bytes": self._arena.huge_bytes() + self._caches.huge_bytes(),
        }

    def close(self) -> None:
        # The mappings go with the last view of them; a view that a caller kept stays valid memory. The library goes
        # with its last function, and its threads with it.
        self._calls = {}
        self._at_once = {}
        self._arrays = []
        self.inputs = {}
        if hasattr(self, "library"):
            _set_threads(self.library, 1)
            del self._structures, self._watch, self._weights, self._arena, self._caches, self.library

    def _rows(self) -> dict[str, NDArray[Any]]:
        """The caches by name: [slots, width]."""
        buffers = zip(self._plan.buffers, self._arrays, strict=True)
        return {b.name: array.reshape(self.slots, b.width) for b, array in buffers if b.kind == "cache"}

    def _array(self, artifact: Artifact, buffer: Buffer) -> NDArray[Any]:
        if buffer.kind == "weight":
            offset = artifact.tensors[buffer.tensor].offset + buffer.offset
            return typed(self._weights, offset, buffer.dtype, buffer.size)
        if buffer.kind == "arena":
            return typed(self._arena.data, buffer.offset, buffer.dtype, buffer.size)
        if buffer.kind == "cache":
            return typed(self._caches.data, self._cache_offsets[buffer.name], buffer.dtype, self.slots * buffer.width)
        return typed(Block(buffer.bytes, f"the input {buffer.name}").data, 0, buffer.dtype, buffer.size)


def _allocate_caches(size: int) -> Block:
    if size >= 2**47:
        raise MemoryRefused(bytes=size, what="the cache")
    return Block(size, "the cache")


def _load(artifact: Artifact, file: str) -> Library:
    path = artifact.folder / file
    data = artifact.checked_bytes(file)
    _require_library_for(path, data[:20], machine())
    _import_tvm_ffi()  # kernels refer to its library
    library = Library(data, path)
    plan = library.text("dsv3c_plan")
    if plan is not None and plan != artifact.manifest.files[PLAN].sha256:
        raise PlanNotOfKernels(path=artifact.folder / PLAN, library=path)
    return library


def _require_library_for(path: Path, head: bytes, wanted: str) -> None:
    """From the header of a library: what dlopen would refuse gets a message of ours, with both machines named."""
    if sys.platform not in _SYSTEMS:
        return
    system, built_for = _built_for(path, head)
    if (system, built_for) == (sys.platform, wanted):
        return
    suggestion = next((name for name, known in MACHINES.items() if known == wanted), "<target>")
    if system == sys.platform:
        raise WrongMachine(wanted=built_for, found=wanted, suggestion=suggestion)
    names = [f"{cpu} on {_SYSTEMS[name]}" for name, cpu in ((system, built_for), (sys.platform, wanted))]
    raise WrongMachine(wanted=names[0], found=names[1], suggestion=f"{suggestion}:os={_SYSTEMS[sys.platform].lower()}")


def _built_for(path: Path, head: bytes) -> tuple[str, str]:
    """System and machine of the library that starts with `head`: ELF, or Mach-O of 64 bits."""
    if len(head) == 20 and head.startswith(b"\xcf\xfa\xed\xfe"):
        number = struct.unpack_from("<I", head, 4)[0]
        return "darwin", _MACH_MACHINES.get(number, f"Mach-O machine {number}")
    if len(head) < 20 or not head.startswith(b"\x7fELF"):
        raise LibraryInvalid(path=path, reason="it is neither an ELF nor a Mach-O file")
    if head[4] != 2 or head[5] != 1:
        raise LibraryInvalid(path=path, reason="it is not a 64-bit little-endian ELF file")
    number = struct.unpack_from("<H", head, 18)[0]
    return "linux", _ELF_MACHINES.get(number, f"ELF machine {number}")


def _resolve(plan: Plan, arrays: list[NDArray[Any]], library: Library) -> dict[str, list[Call]]:
    """Calls of each entry, ready to run: the functions of the library with their tensors."""
    tvm_ffi = _import_tvm_ffi()
    tensors = [tvm_ffi.from_dlpack(array, require_alignment=_ALIGNMENT) for array in arrays]
    functions: dict[str, Any] = {}

    def function(name: str) -> Any:
        if name not in functions:
            functions[name] = library.kernel(tvm_ffi, name)
        return functions[name]

    def calls(entry: Entry) -> list[Call]:
        return [(function(name), tuple(tensors[i] for i in indices)) for name, indices in entry.calls]

    return {name: calls(entry) for name, entry in plan.entries.items()}


def _set_threads(library: Library, threads: int) -> None:
    set_threads = library.function("dsv3c_threads")
    set_threads.argtypes, set_threads.restype = [ctypes.c_int], None
    set_threads(threads)


def _divide(library: Library, weight_bytes: int) -> int:
    """Have threads and weights divided among memory nodes, where the machine has several and room for the weights.
    Returns among how many; a library from before there was this keeps one."""
    group = memory_limit()
    if group is not None and group.limit < weight_bytes:
        return 1
    try:
        divide = library.function("dsv3c_nodes")
    except KernelMissing:
        return 1
    divide.argtypes, divide.restype = [ctypes.c_uint64], ctypes.c_int
    nodes: int = divide(weight_bytes)
    return nodes


def _spread(library: Library, blocks: Iterable[Block]) -> None:
    """Put the pages of memory that no one touched yet on all nodes in turn."""
    spread = library.function("dsv3c_spread")
    spread.argtypes, spread.restype = [ctypes.c_void_p, ctypes.c_uint64], None
    for block in blocks:
        spread(block.address, block.size)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _import_tvm_ffi() -> Any:
    """tvm_ffi imports torch wherever torch is installed, which costs most of a second and is of no use here."""
    hidden = "torch" not in sys.modules and "tvm_ffi" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tvm_ffi
    except ImportError as error:
        raise RuntimeFault(text=f"the package apache-tvm-ffi cannot be imported: {error}") from error
    finally:
        if hidden:
            del sys.modules["torch"]
    return tvm_ffi
