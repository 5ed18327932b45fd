"""The ONNX Runtime device: a step is one run of an ONNX model for each of its sequences.

The cache is one array [slots, latent_dim] a layer, as on every device. A sequence whose pages follow one another, as
those of a single sequence do, is bound to the model in place: `past` and `present` are the same memory, so that nothing
but the new rows is written. Other sequences are gathered before the run, and their new rows put back after it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact import WEIGHTS, Artifact
from dsv3c.runtime.cpu_features import check_threads
from dsv3c.runtime.errors import (
    GraphInvalid,
    ManifestInvalid,
    NoCallTimes,
    OnnxRuntimeMissing,
    ProviderMissing,
    StepInvalid,
)
from dsv3c.runtime.fields import Fields
from dsv3c.runtime.folder import Folder
from dsv3c.runtime.memory import Block, typed

PROVIDERS: Mapping[str, tuple[str, str]] = {  # name in the manifest: (name in ONNX Runtime, its kind of memory)
    "cpu": ("CPUExecutionProvider", "cpu"),
    "cuda": ("CUDAExecutionProvider", "cuda"),
    "webgpu": ("WebGpuExecutionProvider", "webgpu"),
}
_INPUTS = ("input_ids", "attention_mask", "position_ids", "hidden_states")
_ELEMENTS: Mapping[str, Any] = {"float32": np.float32, "float16": np.float16}
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
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
    """Implements `Device`. Raises OnnxRuntimeMissing, ProviderMissing, GraphInvalid, MemoryRefused."""

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
        self._sessions = {name: self._open(artifact, file) for name, file in files.items()}
        self._arena = Block(self._plan.arena_bytes, "what a step gives")
        buffers = self._plan.buffers
        self.inputs: Mapping[str, NDArray[Any]] = {
            name: np.zeros(buffers[index].size, buffers[index].dtype) for name, index in self._plan.inputs.items()
        }
        self._element = _ELEMENTS[self._plan.cache_dtype]
        shape = (slots, self._plan.latent_dim)
        self._caches = [self._zeros(shape) for _ in range(self._plan.n_caches)]

    def run(self, entry: str) -> None:
        count, rows = (int(value) for value in self.inputs["control"][:2])
        wanted = self.inputs["rows"][:rows]
        for piece in self._pieces(count):
            self._run_piece(entry, piece, wanted)

    def run_timed(self, entry: str) -> NDArray[np.float64]:
        profiler = "ONNX Runtime has a profiler of its own (SessionOptions.enable_profiling)"
        raise NoCallTimes(what="an ONNX artifact", instead=f"leave out --per-op; {profiler}")

    def output(self, entry: str, name: str) -> NDArray[np.float32]:
        buffer = self._plan.buffers[self._plan.entries[entry].outputs[name]]
        return typed(self._arena.data, buffer.offset, buffer.dtype, buffer.size)

    def copy_slots(self, source: int, target: int, count: int) -> None:
        for cache in self._caches:
            rows = self._rows(cache, np.arange(source, source + count))
            self._put_rows(cache, np.arange(target, target + count), rows)

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
        self._caches = []
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
        hidden = self.output(entry, "hidden")
        width = hidden.size // self._plan.bounds.T
        given = self._plan.entries[entry].inputs.get("hidden")
        if given is not None:
            states = self.inputs[self._plan.buffers[given].name].reshape(-1, width)
            feeds["hidden_states"] = states[piece.tokens][None].astype(self._element)
        for name, array in feeds.items():
            # By address: binding by array looks names up, and finds none that has a default.
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        logits = self.output(entry, "logits").reshape(self._plan.bounds.R, -1)
        found = {
            "logits": np.empty((1, kept, logits.shape[1]), np.float32),
            "last_hidden_state": np.empty((1, count, width), np.float32),
        }
        for name, array in found.items():
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        copies = self._bind_caches(binding, session, piece)
        session.run_with_iobinding(binding)
        for cache, rows_of in copies:
            self._put_rows(cache, piece.slots[piece.past :], self._rows(rows_of, np.arange(piece.past, end)))
        logits[mine] = found["logits"][0, local[mine] - (count - kept)]
        hidden.reshape(-1, width)[piece.tokens] = found["last_hidden_state"][0]

    def _bind_caches(self, binding: Any, session: Any, piece: _Piece) -> list[tuple[Any, Any]]:
        """Bind past and present of every layer; returns (cache, copy) for those that were not bound in place."""
        end, width = piece.slots.size, self._plan.latent_dim
        copies = []
        for name in _past_names(session):
            cache = self._caches[_cache_index(name)]
            memory, first = cache, int(piece.slots[0])
            if not piece.in_place:
                memory, first = self._zeros((end, width)), 0
                self._put_rows(memory, np.arange(piece.past), self._rows(cache, piece.slots[: piece.past]))
                copies.append((cache, memory))
            place = memory.data_ptr() + first * width * np.dtype(self._element).itemsize
            memory_type = self._memory, 0, self._element
            binding.bind_input(name, *memory_type, (1, 1, piece.past, width), place)
            present = name.replace("past_key_values", "present")
            binding.bind_output(present, *memory_type, (1, 1, end, width), place)
        return copies

    # --- memory of the provider

    def _zeros(self, shape: tuple[int, int]) -> Any:
        """An OrtValue of the cache's type in the provider's memory."""
        if self._memory == "cpu":
            return self._ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, self._element))
        return self._ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, self._element), self._memory, 0)

    def _rows(self, memory: Any, slots: NDArray[np.int64]) -> NDArray[Any]:
        rows: NDArray[Any] = memory.numpy()[slots]
        return rows

    def _put_rows(self, memory: Any, slots: NDArray[np.int64], rows: NDArray[Any]) -> None:
        whole = memory.numpy()
        whole[slots] = rows
        if self._memory != "cpu":
            memory.update_inplace(whole)

    def _open(self, artifact: Artifact, file: str) -> Any:
        if file not in artifact.manifest.files:
            raise ManifestInvalid(where="manifest.target.graphs", reason=f"{file!r} is not listed in files")
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        # A plan of the memory is kept for every combination of lengths, and each step has another.
        options.enable_mem_pattern = False
        path, graph = artifact.folder / file, artifact.checked_bytes(file)
        options.add_session_config_entry(_WEIGHTS_FOLDER, _held(artifact.root))
        try:
            session = self._ort.InferenceSession(graph, options, providers=[self._provider])
        except Exception as error:
            raise GraphInvalid(path=path, reason=str(error)) from error
        known = {f"past_key_values.{index}.key" for index in range(self._plan.n_caches)}
        for value in session.get_inputs():
            if value.name.startswith("past_key_values."):
                wrong = value.name not in known or value.shape[1:] != [1, "past", self._plan.latent_dim]
            else:
                wrong = value.name not in _INPUTS
            if wrong:
                raise GraphInvalid(path=path, reason=f"plan.json has no input {value.name} {value.shape}")
        return session


def _held(root: Folder) -> str:
    """A path of the folder that is held open; where the system has none, the path it had."""
    held = f"/proc/self/fd/{root.descriptor}"
    return held if os.path.isdir(held) else str(root.path)


def _past_names(session: Any) -> list[str]:
    return [value.name for value in session.get_inputs() if value.name.startswith("past_key_values.")]


def _cache_index(name: str) -> int:
    return int(name.split(".")[1])


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
