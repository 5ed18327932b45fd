"""A toy model with the shape of a real one: what it computes depends on every cached row it should see.

It has two layers with two caches each, of different width and type: rows of float32 [token, position, marker, 1], and
codes of int8 [token, position, the layer], of which the position is a remainder. The logits of a token are a fixed
function of a hash over the rows at positions 0..p of its sequence, read through the page table: a row that is missing,
stale, of another sequence or at another position in any cache changes them. `expected_logits` says the same without any
cache.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dsv3c.runtime.artifact.artifact import FORMAT_VERSION, Artifact
from dsv3c.runtime.artifact.plan import CONTROL_SIZE, Plan

VOCAB = 50
LATENT = 4
CODES = 3
LAYERS = 2
REMAINDER = 100
HIDDEN = 2
MARKER = 7
MODULUS = 65521
MODEL: dict[str, Any] = {
    "name": "toy",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "eos_token_ids": [1],
    "max_position_embeddings": 64,
}
FLAGS: tuple[str, ...] = ()


def row_logits(mixed: int) -> NDArray[np.float32]:
    return (((np.arange(VOCAB, dtype=np.int64) + 1) * (mixed + 3) * 7919) % 1009 / 64).astype(np.float32)


def mix(state: int, token: int, position: int) -> int:
    return (state * 31 + (token + 1) * (position + 5)) % MODULUS


def expected_logits(tokens: list[int] | NDArray[Any]) -> NDArray[np.float32]:
    """f32 [T, V] of a sequence that starts cold."""
    state, rows = 0, []
    for position, token in enumerate(tokens):
        state = mix(state, int(token), position)
        rows.append(row_logits(state))
    return np.stack(rows)


def caches(layer: int) -> list[dict[str, Any]]:
    return [
        {"name": f"cache.{layer}", "kind": "cache", "dtype": "float32", "width": LATENT},
        {"name": f"cache.{layer}.codes", "kind": "cache", "dtype": "int8", "width": CODES},
    ]


def plan_content(T: int = 8, R: int = 4, S: int = 3, P: int = 16, page_size: int = 4, prefill_at: int = 6) -> Any:
    """The content of a plan.json that fits the toy."""

    def input_(name: str, size: int, dtype: str = "int32") -> dict[str, Any]:
        return {"name": name, "kind": "input", "dtype": dtype, "size": size}

    buffers = [
        input_("tokens", T),
        input_("positions", T),
        input_("sequence", T),
        input_("page_table", S * P),
        input_("rows", R),
        input_("control", CONTROL_SIZE),
        *caches(0),
        {"name": "%0", "kind": "arena", "dtype": "float32", "size": R * VOCAB, "offset": 0},
        {"name": "%1", "kind": "arena", "dtype": "float32", "size": T * HIDDEN, "offset": _aligned(R * VOCAB * 4)},
        {"name": "scale", "kind": "weight", "dtype": "float32", "size": 1, "tensor": "scale"},
        input_("before", T * HIDDEN, "float32"),
        *caches(1),
    ]
    main = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13]
    outputs = {"logits": 8, "hidden": 9}
    return {
        "version": 2,
        "bounds": {"T": T, "R": R, "S": S, "P": P},
        "page_size": page_size,
        "arena_bytes": _aligned(R * VOCAB * 4) + _aligned(T * HIDDEN * 4),
        "buffers": buffers,
        "entries": {
            "decode": {"calls": [["toy_step", main]], "outputs": outputs, "max_tokens": min(T, 6)},
            "prefill": {
                "calls": [["toy_step", main]], "outputs": outputs, "max_tokens": T, "min_tokens": prefill_at,
            },
            "mtp": {"calls": [["toy_mtp", [0, 5, 8, 11]]], "outputs": {"logits": 8}, "inputs": {"hidden": 11}},
        },
    }  # fmt: skip


def plan_of_version_1() -> Any:
    """The toy's plan as version 1 listed caches: one for each layer, all of the width and type that the plan states."""
    content = plan_content()
    for number, buffer in enumerate(buffer for buffer in content["buffers"] if buffer["kind"] == "cache"):
        del buffer["width"], buffer["dtype"]
        buffer["name"] = f"cache.{number}"
    return content | {"version": 1, "latent_dim": LATENT, "cache_dtype": "float16", "n_caches": 4}


def weights_bytes(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """A safetensors file of float32 tensors, each on a 64-byte boundary."""
    header: dict[str, Any] = {"__metadata__": {"format": "dsv3c"}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]}
        offset = _aligned(offset + tensor.nbytes)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    data = b"".join(tensor.tobytes() + bytes(-tensor.nbytes % 64) for tensor in tensors.values())
    return struct.pack("<Q", len(text)) + text + data


def write_artifact(folder: Path, plan: Any = None, library: bytes = b"no library", **extra: bytes) -> Path:
    """An artifact folder on disk; `extra` are further files by name (with _ for .)."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "plan.json": json.dumps(plan or plan_content()).encode(),
        "weights.safetensors": weights_bytes({"scale": np.ones(1, np.float32)}),
        "kernels/base.so": library,
        **{name.replace("__", "."): data for name, data in extra.items()},
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    write_manifest(folder, manifest_content(files))
    return folder


def manifest_content(files: Mapping[str, bytes]) -> Any:
    return {
        "format_version": FORMAT_VERSION,
        "dsv3c_version": "0.1.0",
        "model": MODEL,
        "target": {"name": "x86", "levels": [{"name": "base", "requires": list(FLAGS), "file": "kernels/base.so"}]},
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in files.items()
        },
        "unknown key": {"is": "kept"},
    }


def write_manifest(folder: Path, content: Any) -> None:
    (folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8")


def edit_json(path: Path, *keys: Any, value: Any) -> None:
    """Set content[keys[0]][keys[1]]… of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    at = content
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    path.write_text(json.dumps(content), encoding="utf-8")


def refresh(folder: Path, name: str) -> None:
    """Make the manifest say the truth about a file that was changed."""
    data = (folder / name).read_bytes()
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    edit_json(folder / "manifest.json", "files", name, value=entry)


class ToyDevice:
    """A device that computes the toy model in numpy. `steps` records (entry, T, R) of every step."""

    def __init__(self, plan: Plan, slots: int) -> None:
        self.plan = plan
        self.slots = slots
        self.prefill_min_tokens: int | None = None
        self.inputs: dict[str, NDArray[Any]] = {
            buffer.name: np.zeros(buffer.size, buffer.dtype) for buffer in plan.buffers if buffer.kind == "input"
        }
        self.caches = {cache.name: np.full((slots, cache.width), 111, cache.dtype) for cache in plan.caches}
        self.outputs = {
            "logits": np.zeros(plan.bounds.R * VOCAB, np.float32),
            "hidden": np.zeros(plan.bounds.T * HIDDEN, np.float32),
        }
        self.steps: list[tuple[str, int, int]] = []
        self.fail_at: int | None = None
        self.closed = False

    def run(self, entry: str) -> None:
        T, R = (int(value) for value in self.inputs["control"][:2])
        if self.fail_at == len(self.steps):
            raise RuntimeError("the device failed")
        self.steps.append((entry, T, R))
        assert 1 <= T <= self.plan.entries[entry].max_tokens and 0 <= R <= self.plan.bounds.R
        if entry == "mtp":
            return self._run_mtp(T)
        positions = self.inputs["positions"][:T]
        hidden = self.outputs["hidden"].reshape(-1, HIDDEN)
        for t in range(T):
            token = self.inputs["tokens"][t]
            for layer in range(LAYERS):
                slot = self._slot(t, positions[t])
                self.caches[f"cache.{layer}"][slot] = [token, positions[t], MARKER, 1]
                self.caches[f"cache.{layer}.codes"][slot] = [token, positions[t] % REMAINDER, layer]
            hidden[t] = [token, positions[t]]
        logits = self.outputs["logits"].reshape(-1, VOCAB)
        for row, t in enumerate(self.inputs["rows"][:R]):
            logits[row] = row_logits(self._state(t))
        return None

    def output(self, entry: str, name: str) -> NDArray[np.float32]:
        return self.outputs[name]

    def copy_slots(self, source: int, target: int, count: int) -> None:
        assert not self.closed
        for cache in self.caches.values():
            cache[target : target + count] = cache[source : source + count]

    def read_slots(self, start: int, count: int) -> dict[str, NDArray[Any]]:
        assert not self.closed
        return {name: cache[start : start + count].copy() for name, cache in self.caches.items()}

    def write_slots(self, start: int, rows: Mapping[str, NDArray[Any]]) -> None:
        for name, cache in self.caches.items():
            cache[start : start + len(rows[name])] = rows[name]

    def report(self) -> dict[str, Any]:
        return {"device": "toy"}

    def close(self) -> None:
        self.closed = True

    def _slot(self, t: int, position: int) -> int:
        size = self.plan.page_size
        page = self.inputs["page_table"][self.inputs["sequence"][t] * self.plan.bounds.P + position // size]
        return int(page) * size + int(position) % size

    def _state(self, t: int) -> int:
        state = 0
        for position in range(int(self.inputs["positions"][t]) + 1):
            slot = self._slot(t, position)
            token, where, marker, _ = self.caches["cache.0"][slot]
            assert where == position and marker == MARKER, "the row of another position"
            for layer in range(LAYERS):
                assert self.caches[f"cache.{layer}"][slot].tolist() == [token, position, MARKER, 1]
                assert self.caches[f"cache.{layer}.codes"][slot].tolist() == [token, position % REMAINDER, layer]
            state = mix(state, int(token), position)
        return state

    def _run_mtp(self, T: int) -> None:
        logits = self.outputs["logits"].reshape(-1, VOCAB)
        before = self.inputs["before"].reshape(-1, HIDDEN)
        for t in range(T):
            logits[t] = row_logits(int(before[t, 0]) * 100 + int(self.inputs["tokens"][t]))


def toy_artifact(folder: Path, **bounds: int) -> Artifact:
    return Artifact.open(write_artifact(folder, plan_content(**bounds)))


KERNEL = Path(__file__).with_name("toy_kernel.c")


def build_library(folder: Path, *flags: str) -> bytes:
    """The toy's kernels as a real library, compiled by the system's C compiler; skips where there is none.

    flags: further ones, and further sources.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (cc)")
    import tvm_ffi.libinfo

    includes = [f"-I{tvm_ffi.libinfo.find_include_path()}", f"-I{tvm_ffi.libinfo.find_dlpack_include_path()}"]
    out = folder / "toy.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", *includes, str(KERNEL), *flags, "-o", str(out)], check=True)
    return out.read_bytes()


def _aligned(size: int) -> int:
    return size + (-size) % 64
