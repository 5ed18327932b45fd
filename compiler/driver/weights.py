"""Weights are recipes: expressions over the checkpoint's tensors, evaluated one piece at a time into one file.

A recipe is an IR value made of params by reshapes, concatenations, `quantize` and `pack`. A recipe over stacked
experts (a param with `*` in its name) is cut along its first axis into one recipe per expert, so that memory is
bounded by the largest single tensor and not by a layer's experts together.

The file is safetensors (https://github.com/huggingface/safetensors, "Format"), every tensor on a 64-byte boundary of
the file so that it can be mapped and used in place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import TensorType, Value, topological_order
from dsv3c.compiler.core.ops.table import Array
from dsv3c.compiler.core.ops.weight import Packed
from dsv3c.compiler.core.storage import Component, aligned, components, tensor_name
from dsv3c.compiler.driver.journal import Journal, NoJournal
from dsv3c.compiler.errors import WeightRangeError
from dsv3c.compiler.formats import fp8, rows
from dsv3c.compiler.formats.elements import as_float32
from dsv3c.compiler.formats.quant import OutOfRange, QTensor

# Reads one tensor as float32 or fp8.CODED, or one expert of a stacked tensor when an index is given.
Read = Callable[[str, int | None], Array]

_BFLOAT16_LARGEST = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
SAFETENSORS_DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "i32": "I32", "i8": "I8", "u8": "U8"}


@dataclass(frozen=True)
class PlacedTensor:
    """One plain array of the file: component `role` of a recipe, at byte `offset` of the file."""

    name: str
    component: Component
    offset: int


@dataclass(frozen=True)
class WeightFile:
    """The layout of the file: its header, where every tensor lies, and its size in bytes."""

    recipes: Mapping[str, Value]
    tensors: Mapping[str, tuple[PlacedTensor, ...]]
    header: bytes
    nbytes: int

    def component_bytes(self, name: str) -> int:
        """Bytes of all components of one recipe."""
        return sum(tensor.component.nbytes for tensor in self.tensors[name])

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, without the header and the padding."""
        return sum(map(self.component_bytes, self.tensors))


def lay_out(recipes: Mapping[str, Value]) -> WeightFile:
    """Place the components of each recipe one after the other; nothing is read yet."""
    table: dict[str, Any] = {"__metadata__": {"format": "dsv3c"}}
    relative: dict[str, list[tuple[str, Component, int]]] = {}
    at = 0
    for recipe, value in recipes.items():
        relative[recipe] = []
        for component in components(value.type, {}):
            name = tensor_name(recipe, component)
            relative[recipe].append((name, component, at))
            # The format allows no holes: the padding up to the next boundary belongs to a tensor of its own.
            end = at + component.nbytes
            dtype = SAFETENSORS_DTYPES[component.dtype]
            table[name] = {"dtype": dtype, "shape": list(component.shape), "data_offsets": [at, end]}
            at = aligned(end)
            if at > end:
                table[f"__pad__.{end}"] = {"dtype": "U8", "shape": [at - end], "data_offsets": [end, at]}
    text = json.dumps(table, separators=(",", ":")).encode()
    header = text + b" " * (aligned(8 + len(text)) - 8 - len(text))
    start = 8 + len(header)
    tensors = {
        recipe: tuple(PlacedTensor(name, component, start + offset) for name, component, offset in parts)
        for recipe, parts in relative.items()
    }
    return WeightFile(recipes, tensors, len(header).to_bytes(8, "little") + header, start + at)


def write(
    file: WeightFile, path: Path, read: Read, advance: Callable[[int], None], journal: Journal | None = None
) -> None:
    """Evaluate every recipe and write it. `advance` is called with the bytes written, from several threads.

    `read(name)` gives a checkpoint tensor; it is called from several threads. journal: knows the pieces that an earlier
    run wrote into the file, which is then there already. Raises WeightRangeError for a weight that its format cannot
    hold.
    """
    kept: Journal = journal or NoJournal()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_EXCL if journal is None else 0), 0o644)
    try:
        os.truncate(descriptor, file.nbytes)
        _write_at(descriptor, file.header, 0)

        def given(leaf: Value) -> Array:
            index = leaf.attrs.get("expert")
            return read(str(leaf.attrs["name"]), None if index is None else int(index))  # type: ignore[arg-type]

        def job(piece: tuple[str, Value, int, int]) -> None:
            recipe, value, index, count = piece
            name = f"{recipe}#{index}"
            if kept.done(name):
                return
            try:
                arrays = _stored_arrays(ops.evaluate([value], given)[0])
            except OutOfRange as error:
                raise _named(value, given, error.format) from error  # type: ignore[attr-defined]
            parts = []
            for tensor, array in zip(file.tensors[recipe], arrays, strict=True):
                data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                parts.append((tensor.offset + index * (tensor.component.nbytes // count), data))
                _write_at(descriptor, data, parts[-1][0])
            kept.record(name, parts)
            advance(sum(tensor.component.nbytes for tensor in file.tensors[recipe]) // count)

        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for _ in pool.map(job, _pieces(file.recipes)):
                pass
    finally:
        os.close(descriptor)


def _named(recipe: Value, given: Callable[[Value], Array], format: str) -> WeightRangeError:
    """The error for a recipe that overflows its format: of the tensors in it, the one with the largest weight."""

    def largest(leaf: Value) -> tuple[float, list[int]]:
        weight = as_float32(given(leaf))
        position = np.unravel_index(np.abs(weight).argmax(), weight.shape)
        return float(weight[position]), [int(index) for index in position]

    found = {leaf: largest(leaf) for leaf in topological_order([recipe]) if leaf.op == "param"}
    leaf = max(found, key=lambda leaf: abs(found[leaf][0]))
    value, position = found[leaf]
    name = str(leaf.attrs["name"]).replace("*", str(leaf.attrs.get("expert", "*")))
    wider = "bfloat16" if abs(value) <= _BFLOAT16_LARGEST else "float32"
    return WeightRangeError(tensor=name, found=value, position=position, format=format, wider=wider)


def _write_at(descriptor: int, data: Any, offset: int) -> None:
    """All of `data` at `offset`; one pwrite moves at most 2 GiB."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _stored_arrays(result: Any) -> list[Array]:
    """The plain arrays of an evaluated recipe, in the order of storage.components."""
    if isinstance(result, Packed):
        return list(result.components.values())
    if isinstance(result, QTensor):
        return list(rows.pack(result).values())
    return [as_float32(result) if result.dtype == fp8.CODED else result]


def _pieces(recipes: Mapping[str, Value]) -> Iterator[tuple[str, Value, int, int]]:
    """(recipe, value, index, count): each recipe whole, or cut along its first axis when it holds stacked experts."""
    for recipe, value in recipes.items():
        if not any(map(is_stacked, topological_order([value]))):
            yield recipe, value, 0, 1
            continue
        count = int(value.shape[0])
        for index in range(count):
            yield recipe, part(value, index), index, count


def is_stacked(value: Value) -> bool:
    """A param that holds all experts, one tensor of the checkpoint each, and has not been cut yet."""
    return value.op == "param" and "*" in str(value.attrs["name"]) and "expert" not in value.attrs


def part(value: Value, index: int) -> Value:
    """The recipe of value[index], pushed towards the leaves so that only what it needs is read."""
    rule = _PART_RULES.get(value.op)
    pushed = rule(value, index) if rule else None
    return _cut(value, 0, index) if pushed is None else pushed


def _cut(value: Value, axis: int, index: int) -> Value:
    """value with `axis` reduced to `index` and dropped, computed from the whole value."""
    one = ops.apply("slice", (value,), {"axis": axis, "start": index, "stop": index + 1})
    return ops.apply("reshape", (one,), {"shape": value.shape[:axis] + value.shape[axis + 1 :]})


def _part_param(value: Value, index: int) -> Value | None:
    if not is_stacked(value):
        return None
    return Value("param", (), {**value.attrs, "expert": index}, TensorType(value.dtype, value.shape[1:]))


def _part_concat(value: Value, index: int) -> Value | None:
    axis = int(value.attrs["axis"]) % len(value.shape)  # type: ignore[arg-type]
    if axis != 0:
        return ops.apply("concat", tuple(part(source, index) for source in value.inputs), {"axis": axis - 1})
    for source in value.inputs:
        size = int(source.shape[0])
        if index < size:
            return part(source, index)
        index -= size
    return None


def _part_reshape(value: Value, index: int) -> Value | None:
    (source,) = value.inputs
    if source.shape[0] == value.shape[0]:
        return ops.apply("reshape", (part(source, index),), {"shape": value.shape[1:]})
    return None


def _part_transpose(value: Value, index: int) -> Value | None:
    (source,) = value.inputs
    lead, *rest = map(int, value.attrs["axes"])  # type: ignore[arg-type]
    inner = part(source, index) if lead == 0 else _cut(source, lead, index)
    kept = tuple(axis - (axis > lead) for axis in rest)
    return ops.apply("transpose", (inner,), {"axes": kept})


def _part_elementwise(value: Value, index: int) -> Value | None:
    """quantize and pack look at the last two axes only."""
    return ops.apply(value.op, (part(value.inputs[0], index),), value.attrs) if len(value.shape) > 2 else None


_PART_RULES: Mapping[str, Callable[[Value, int], Value | None]] = {
    "param": _part_param,
    "concat": _part_concat,
    "reshape": _part_reshape,
    "transpose": _part_transpose,
    "quantize": _part_elementwise,
    "pack": _part_elementwise,
}
