"""The ONNX Runtime device: a step is one run of an ONNX model for each of its sequences.

Each cache is one array [slots, width], as on every device. A sequence whose pages follow one another, as
those of a single sequence do, is bound to the model in place: `past` and `present` are the same memory, so that nothing
but the new rows is written. Other sequences are gathered before the run, and their new rows put back after it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.artifact import WEIGHTS, Artifact
from dsv3c.runtime.artifact.fields import Fields
from dsv3c.runtime.artifact.folder import Folder
from dsv3c.runtime.artifact.plan import ELEMENT_BYTES, Buffer
from dsv3c.runtime.devices.cpu.cores import check_threads
from dsv3c.runtime.devices.memory import Block, typed
from dsv3c.runtime.errors import (
    FileUnreadable,
    GraphFailed,
    GraphInvalid,
    ManifestInvalid,
    NoCallTimes,
    OnnxRuntimeMissing,
    PlanInvalid,
    ProviderMissing,
    StepInvalid,
)

PROVIDERS: Mapping[str, tuple[str, str]] = {  # name in the manifest: (name in ONNX Runtime, its kind of memory)
    "cpu": ("CPUExecutionProvider", "cpu"),
    "cuda": ("CUDAExecutionProvider", "cuda"),
    "webgpu": ("WebGpuExecutionProvider", "webgpu"),
}
_ELEMENTS: Mapping[str, tuple[Any, str]] = {  # dtype of a cache: (numpy type, name in ONNX Runtime)
    "float32": (np.float32, "tensor(float)"),
    "float16": (np.float16, "tensor(float16)"),
    "int8": (np.int8, "tensor(int8)"),
    "uint8": (np.uint8, "tensor(uint8)"),
}
_ACTIVATIONS = {name: element for element, name in (_ELEMENTS["float32"], _ELEMENTS["float16"])}
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_PAST, _PRESENT, _HIDDEN, _EXPERTS = "past_key_values.", "present.", "hidden_states", "experts."
# Of an input or output: type, and dims, those by name being free. A free batch may also be 1, which is all we feed.
Signature = tuple[str, tuple[int | str, ...]]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class _Piece:
    """The tokens of one sequence in a step: their indices, the position of the first, the slots up to their end."""

    tokens: NDArray[np.int64]
    past: int
    slots: NDArray[np.int64]

    @property
    def in_place(self) -> bool:
        return bool(self.slots[-1] - self.slots[0] == self.slots.size - 1 and np.all(np.diff(self.slots) == 1))


class OrtDevice:
    """Implements `Device`. Raises OnnxRuntimeMissing, ProviderMissing, GraphInvalid, GraphFailed, MemoryRefused."""

    forks = False  # its threads stay behind
    prefill_min_tokens: int | None = None  # the models have one entry for steps of any length

    def __init__(self, artifact: Artifact, slots: int, threads: int | None) -> None:
        self._ort = _import_onnxruntime()
        self._threads = check_threads(threads)
        self._plan, self.slots = artifact.plan, slots
        target = Fields(artifact.manifest.content["target"], "manifest.target", ManifestInvalid)
        self._provider, self._memory = _provider(self._ort, target)
        self._weight_bytes = artifact.manifest.files[WEIGHTS].size
        graphs = target.object("graphs")
        if set(graphs.value) != set(self._plan.entries):
            raise graphs.fail("graphs", f"must name a file for each of {', '.join(self._plan.entries)}")
        files = {name: graphs.string(name) for name in graphs.value}
        strange = next((cache for cache in self._plan.caches if cache.dtype not in _ELEMENTS), None)
        if strange is not None:
            reason = f"{strange.name} is {strange.dtype}, it must be one of {', '.join(_ELEMENTS)}"
            raise PlanInvalid(where="buffers", reason=reason)
        self._vocab_size = artifact.manifest.vocab_size
        self._buffers_by_input = {_past_name(cache): cache for cache in self._plan.caches}
        self._sessions = {name: self._open(artifact, name, file) for name, file in files.items()}
        pasts = [name for session in self._sessions.values() for name in _past_names(session)]
        if sorted(pasts) != sorted(map(_past_name, self._plan.caches)):
            raise ManifestInvalid(where="manifest.target.graphs", reason="each cache must be an input of one graph")
        self._arena = Block(self._plan.arena_bytes, "what a step gives")
        buffers = self._plan.buffers
        self.inputs: Mapping[str, NDArray[Any]] = {
            name: np.zeros(buffers[index].size, buffers[index].dtype) for name, index in self._plan.inputs.items()
        }
        self._caches = {name: self._zeros(slots, cache) for name, cache in self._buffers_by_input.items()}

    def run(self, entry: str) -> None:
        count, rows = (int(value) for value in self.inputs["control"][:2])
        wanted = self.inputs["rows"][:rows]
        for piece in self._pieces(count):
            self._run_piece(entry, piece, wanted)

    def run_timed(self, entry: str) -> NDArray[np.float64]:
        profiler = "ONNX Runtime has a profiler of its own (SessionOptions.enable_profiling)"
        raise NoCallTimes(what="an ONNX artifact", instead=f"leave out --per-op; {profiler}")

    def output(self, entry: str, name: str) -> NDArray[np.float32]:
        return self._arena_array(self._plan.entries[entry].outputs[name].buffer)

    def experts(self, entry: str) -> Mapping[int, NDArray[np.int32]]:
        sizes = self._plan.expert_ids(entry, int(self.inputs["control"][0]))
        return {layer: self._arena_array(index)[:size].copy() for layer, (index, size) in sizes.items()}

    def _arena_array(self, index: int) -> NDArray[Any]:
        buffer = self._plan.buffers[index]
        return typed(self._arena.data, buffer.offset, buffer.dtype, buffer.size)

    def _rows_of(self, entry: str, name: str) -> NDArray[np.float32]:
        """An output by rows, of the largest step."""
        bounds, output = self._plan.bounds, self._plan.entries[entry].outputs[name]
        return self.output(entry, name).reshape(output.count(bounds.T, bounds.R), -1)

    def copy_slots(self, source: int, target: int, count: int) -> None:
        for cache in self._caches.values():
            rows = self._rows(cache, np.arange(source, source + count))
            self._put_rows(cache, np.arange(target, target + count), rows)

    def read_slots(self, start: int, count: int) -> Mapping[str, NDArray[Any]]:
        slots = np.arange(start, start + count)
        return {self._buffers_by_input[past].name: self._rows(cache, slots) for past, cache in self._caches.items()}

    def write_slots(self, start: int, rows: Mapping[str, NDArray[Any]]) -> None:
        for past, cache in self._caches.items():
            given = rows[self._buffers_by_input[past].name]
            self._put_rows(cache, np.arange(start, start + len(given)), given)

    def report(self) -> dict[str, Any]:
        return {
            "device": "onnxruntime",
            "provider": self._provider,
            "version": self._ort.__version__,
            "threads": self._threads,
            "weight_bytes": self._weight_bytes,
            "arena_bytes": self._arena.size,
            "cache_bytes": self.slots * self._plan.slot_bytes,
            "cache_slots": self.slots,
        }

    def close(self) -> None:
        self._sessions = {}
        self._caches = {}
        self.inputs = {}
        del self._arena

    # --- one sequence of a step

    def _pieces(self, count: int) -> list[_Piece]:
        sequence, positions = self.inputs["sequence"][:count], self.inputs["positions"][:count]
        pieces = []
        for index in dict.fromkeys(sequence.tolist()):
            tokens = np.flatnonzero(sequence == index)
            past, end = int(positions[tokens[0]]), int(positions[tokens[0]]) + tokens.size
            if not np.array_equal(positions[tokens], np.arange(past, end)):
                raise StepInvalid(where="positions", reason="those of one sequence must follow one another")
            pieces.append(_Piece(tokens, past, self._slots(index, end)))
        return pieces

    def _slots(self, sequence: int, end: int) -> NDArray[np.int64]:
        """The slots of the positions [0, end) of a sequence."""
        size, first = self._plan.page_size, sequence * self._plan.bounds.P
        pages = self.inputs["page_table"][first : first - (-end // size)].astype(np.int64)
        return (pages[:, None] * size + np.arange(size)).reshape(-1)[:end]

    def _run_piece(self, entry: str, piece: _Piece, rows: Ints) -> None:
        session, count = self._sessions[entry], piece.tokens.size
        binding = session.io_binding()
        local = np.searchsorted(piece.tokens, rows)
        mine = np.flatnonzero((local < count) & (piece.tokens[np.minimum(local, count - 1)] == rows))
        kept = count - int(local[mine].min()) if mine.size else 1
        end = piece.past + count
        ids = {"input_ids": self.inputs["tokens"], "position_ids": self.inputs["positions"]}
        feeds: dict[str, NDArray[Any]]
        feeds = {name: array[piece.tokens][None].astype(np.int64) for name, array in ids.items()}
        feeds["attention_mask"] = np.ones((1, end), np.int64)
        feeds["num_logits_to_keep"] = np.array([kept], np.int64)
        hidden, logits = self._rows_of(entry, "hidden"), self._rows_of(entry, "logits")
        width = hidden.shape[1]
        given = self._plan.entries[entry].inputs.get("hidden")
        if given is not None:
            states = self.inputs[self._plan.buffers[given].name].reshape(-1, width)
            element = next(_ACTIVATIONS[value.type] for value in session.get_inputs() if value.name == _HIDDEN)
            feeds[_HIDDEN] = states[piece.tokens][None].astype(element)
        for name, array in feeds.items():
            # By address: binding by array looks names up, and finds none that has a default.
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        found = {
            "logits": np.empty((1, kept, logits.shape[1]), np.float32),
            "last_hidden_state": np.empty((1, count, width), np.float32),
        }
        chosen = {
            layer: np.empty((count, self._top_k(index)), np.int64)
            for layer, index in self._plan.entries[entry].experts.items()
        }
        results: dict[str, NDArray[Any]] = {**found, **{f"{_EXPERTS}{layer}": ids for layer, ids in chosen.items()}}
        for name, array in results.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        copies = self._bind_caches(binding, session, piece)
        try:
            session.run_with_iobinding(binding)
        except Exception as error:
            raise GraphFailed(entry=entry, reason=str(error)) from error
        for cache, rows_of in copies:
            self._put_rows(cache, piece.slots[piece.past :], self._rows(rows_of, np.arange(piece.past, end)))
        logits[mine] = found["logits"][0, local[mine] - (count - kept)]
        hidden[piece.tokens] = found["last_hidden_state"][0]
        for layer, index in self._plan.entries[entry].experts.items():
            self._arena_array(index).reshape(-1, self._top_k(index))[piece.tokens] = chosen[layer]

    def _top_k(self, index: int) -> int:
        """Experts a token, by a buffer of those."""
        return self._plan.buffers[index].size // self._plan.bounds.T

    def _bind_caches(self, binding: Any, session: Any, piece: _Piece) -> list[tuple[Any, Any]]:
        """Bind past and present of every cache; returns (cache, copy) for those that were not bound in place."""
        end = piece.slots.size
        copies = []
        for name in _past_names(session):
            cache, buffer = self._caches[name], self._buffers_by_input[name]
            element, width = _ELEMENTS[buffer.dtype][0], buffer.width
            memory, first = cache, int(piece.slots[0])
            if not piece.in_place:
                memory, first = self._zeros(end, buffer), 0
                self._put_rows(memory, np.arange(piece.past), self._rows(cache, piece.slots[: piece.past]))
                copies.append((cache, memory))
            place = memory.data_ptr() + first * buffer.slot_bytes
            memory_type = self._memory, 0, element
            binding.bind_input(name, *memory_type, (1, 1, piece.past, width), place)
            present = name.replace(_PAST, _PRESENT)
            binding.bind_output(present, *memory_type, (1, 1, end, width), place)
        return copies

    # --- memory of the provider

    def _zeros(self, slots: int, cache: Buffer) -> Any:
        """An OrtValue of so many rows of the cache in the provider's memory."""
        zeros = np.zeros((slots, cache.width), _ELEMENTS[cache.dtype][0])
        if self._memory == "cpu":
            return self._ort.OrtValue.ortvalue_from_numpy(zeros)
        return self._ort.OrtValue.ortvalue_from_numpy(zeros, self._memory, 0)

    def _rows(self, memory: Any, slots: NDArray[np.int64]) -> NDArray[Any]:
        rows: NDArray[Any] = memory.numpy()[slots]
        return rows

    def _put_rows(self, memory: Any, slots: NDArray[np.int64], rows: NDArray[Any]) -> None:
        whole = memory.numpy()
        whole[slots] = rows
        if self._memory != "cpu":
            memory.update_inplace(whole)

    def _open(self, artifact: Artifact, entry: str, file: str) -> Any:
        if file not in artifact.manifest.files:
            raise ManifestInvalid(where="manifest.target.graphs", reason=f"{file!r} is not listed in files")
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        # A plan of the memory is kept for every combination of lengths, and each step has another.
        options.enable_mem_pattern = False
        path, graph = artifact.folder / file, artifact.checked_bytes(file)
        options.add_session_config_entry(_WEIGHTS_FOLDER, _held(artifact.root))
        weights = _linked_weights(artifact)
        if weights is not None:
            options.add_external_initializers_from_files_in_memory([WEIGHTS], [weights], [len(weights)])
        try:
            session = self._ort.InferenceSession(graph, options, providers=[self._provider])
        except Exception as error:
            raise GraphInvalid(path=path, reason=str(error)) from error
        given = {value.name: value for value in (*session.get_inputs(), *session.get_overridable_initializers())}
        pasts = [name for name in self._buffers_by_input if name in given]
        hidden = given[_HIDDEN].type if _HIDDEN in given else ""
        for name, signature in self._inputs(entry, pasts, hidden).items():
            _check_value("input", name, given.pop(name, None), signature, path)
        if given:
            raise GraphInvalid(path=path, reason=f"plan.json has no input {next(iter(given))}")
        outputs = {value.name: value for value in session.get_outputs()}
        for name, signature in self._outputs(entry, pasts).items():
            _check_value("output", name, outputs.get(name), signature, path)
        return session

    def _inputs(self, entry: str, pasts: list[str], hidden: str) -> dict[str, Signature]:
        """hidden: the type of the states that the graph takes, which is one that activations can have."""
        ids: Signature = ("tensor(int64)", ("batch", "sequence"))
        inputs = dict.fromkeys(("input_ids", "attention_mask", "position_ids"), ids)
        inputs["num_logits_to_keep"] = ("tensor(int64)", (1,))
        if "hidden" in self._plan.entries[entry].inputs:
            states = hidden if hidden in _ACTIVATIONS else next(iter(_ACTIVATIONS))
            inputs[_HIDDEN] = (states, ("batch", "sequence", self._width(entry)))
        return inputs | {name: self._row(name, "past") for name in pasts}

    def _row(self, past: str, length: str) -> Signature:
        """The past or present of a cache, by the name of its past."""
        cache = self._buffers_by_input[past]
        return _ELEMENTS[cache.dtype][1], ("batch", 1, length, cache.width)

    def _outputs(self, entry: str, pasts: list[str]) -> dict[str, Signature]:
        return {
            "logits": ("tensor(float)", ("batch", "kept", self._vocab_size)),
            "last_hidden_state": ("tensor(float)", ("batch", "sequence", self._width(entry))),
            **{name.replace(_PAST, _PRESENT): self._row(name, "total") for name in pasts},
            **{
                f"{_EXPERTS}{layer}": ("tensor(int64)", ("tokens", self._top_k(index)))
                for layer, index in self._plan.entries[entry].experts.items()
            },
        }

    def _width(self, entry: str) -> int:
        outputs = self._plan.entries[entry].outputs
        if "hidden" not in outputs:
            raise PlanInvalid(where=f"entries.{entry}.outputs", reason="has no hidden")
        return self._plan.row_bytes(outputs["hidden"]) // ELEMENT_BYTES["float32"]


def _check_value(kind: str, name: str, value: Any, signature: Signature, path: Path) -> None:
    """Raises GraphInvalid unless `value`, None when the graph has none of this name, is of type and shape."""
    if value is None:
        raise GraphInvalid(path=path, reason=f"it has no {kind} {name}")
    type, shape = signature
    found = list(value.shape)
    if found and found[0] == 1 and shape[0] == "batch":
        found[0] = "batch"
    fits = len(found) == len(shape) and all(
        got == want if isinstance(want, int) else not isinstance(got, int)
        for got, want in zip(found, shape, strict=True)
    )
    if value.type != type or not fits:
        wanted = f"{type} {list(shape)}"
        raise GraphInvalid(path=path, reason=f"the {kind} {name} is {value.type} {value.shape}, it must be {wanted}")


def _linked_weights(artifact: Artifact) -> mmap.mmap | None:
    """The weights when they are a link that ONNX Runtime would not follow: it stays in the folder that it is given."""
    path = artifact.folder / WEIGHTS
    if path.resolve().parent == artifact.folder:
        return None
    descriptor = artifact.open_weights()
    try:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise FileUnreadable(path=path, reason=str(error)) from error
    finally:
        os.close(descriptor)


def _held(root: Folder) -> str:
    """A path of the folder that is held open; where the system has none, the path it had."""
    held = f"/proc/self/fd/{root.descriptor}"
    return held if os.path.isdir(held) else str(root.path)


def _past_name(cache: Buffer) -> str:
    """The graph's input for cache.LAYER or cache.LAYER.PART."""
    layer, _, part = cache.name.removeprefix("cache.").partition(".")
    return f"{_PAST}{layer}.{part or 'key'}"


def _past_names(session: Any) -> list[str]:
    return [value.name for value in session.get_inputs() if value.name.startswith(_PAST)]


def _provider(ort: Any, target: Fields) -> tuple[str, str]:
    name = target.string("provider")
    if name not in PROVIDERS:
        raise target.fail("provider", f"{name!r} is not one of {', '.join(PROVIDERS)}")
    known = ort.get_available_providers()
    if PROVIDERS[name][0] not in known:
        raise ProviderMissing(provider=name, version=ort.__version__, known=", ".join(known))
    return PROVIDERS[name]


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise OnnxRuntimeMissing(reason=str(error)) from error
    return onnxruntime
