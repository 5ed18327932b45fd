"""Weights are recipes: expressions over the checkpoint's tensors, evaluated one piece at a time into one file.

A recipe is an IR value made of params by reshapes, concatenations, `quantize` and `pack`. Those over stacked experts
are written expert by expert (core.pieces).

The file is safetensors (https://github.com/huggingface/safetensors, "Format"), every tensor on a 64-byte boundary of
the file so that it can be mapped and used in place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dsv3c.compiler.checkpoint.errors import WeightRangeError
from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Value, topological_order
from dsv3c.compiler.core.ops.table import Array
from dsv3c.compiler.core.ops.weight import Packed, decoded, format_of
from dsv3c.compiler.core.pieces import Piece, pieces
from dsv3c.compiler.core.storage import Component, aligned, components, tensor_name
from dsv3c.compiler.driver.journal import Journal, NoJournal
from dsv3c.compiler.driver.packing import Kernels, Read, reading
from dsv3c.compiler.formats import coded, rows
from dsv3c.compiler.formats.elements import NUMPY_DTYPES, as_float32
from dsv3c.compiler.formats.keeping import NO_LOSS, Loss
from dsv3c.compiler.formats.quant import OutOfRange, QTensor

# The codes of the operand of a `quantize`, and what a run that goes on is to know of it, as JSON. Raises OutOfRange.
Round = Callable[[Value, Array], tuple[QTensor, list[Any]]]
Recall = Callable[[list[Any]], None]  # told what was noted of a piece that is there from an earlier run

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
    file: WeightFile, path: Path, read: Read, advance: Callable[[int], None], round: Round | None = None
) -> dict[str, Loss]:
    """Evaluate every recipe and write it, see `Writer`; what codes of the checkpoint lost. Raises WeightRangeError."""
    with writing(file, path, read, advance) as writer:
        writer.write_rest(round)
    return writer.losses


@contextmanager
def writing(
    file: WeightFile,
    path: Path,
    read: Read,
    advance: Callable[[int], None],
    journal: Journal | None = None,
    kernels: Kernels | None = None,
) -> Iterator[Writer]:
    """A new file of its final size, to be filled piece by piece. read: tensors as float32 or in codes (formats.coded).

    journal: knows the pieces that an earlier run wrote into the file, which may then be there already. kernels: that
    round and pack what they can.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_EXCL if journal is None else 0), 0o644)
    try:
        os.truncate(descriptor, file.nbytes)
        _write_at(descriptor, file.header, 0)
        yield Writer(file, descriptor, read, advance, journal or NoJournal(), kernels or Kernels({}))
    finally:
        os.close(descriptor)


class Writer:
    """Puts each piece of each recipe at its place in the file. Threads may share it.

    `read(name, expert)` gives a checkpoint tensor, `advance` is called with the bytes written: both from the thread
    that writes.
    """

    def __init__(
        self,
        file: WeightFile,
        descriptor: int,
        read: Read,
        advance: Callable[[int], None],
        journal: Journal,
        kernels: Kernels,
    ) -> None:
        self.file = file
        self._journal = journal
        self._descriptor = descriptor
        self._read = read
        self._advance = advance
        self._kernels = kernels
        self._written: set[tuple[str, int]] = set()
        self._losses: dict[tuple[str, int], Loss] = {}

    @property
    def losses(self) -> dict[str, Loss]:
        """What codes of the checkpoint lost, by recipe, where they lost any."""
        found: dict[str, Loss] = {}
        for (recipe, _), loss in self._losses.items():
            if loss != NO_LOSS:
                found[recipe] = found.get(recipe, NO_LOSS) + loss
        return found

    @property
    def bytes_left(self) -> int:
        """What `advance` will be told of, when all is written."""
        return self.file.tensor_bytes - self._journal.nbytes

    def read_through(self, wrap: Callable[[Read], Read]) -> None:
        """From now on tensors of the checkpoint are what `wrap` makes of them."""
        self._read = wrap(self._read)
        self._kernels.stored = None

    def evaluate(self, value: Value) -> Any:
        """What an expression over the checkpoint's tensors stands for."""
        return ops.evaluate([value], self.given)[0]

    def kept(self, piece: str) -> Any:
        """What an earlier run noted, of a piece that is in the file; None where it is not, or nothing was."""
        return (self._journal.note(piece) or {}).get("rounding")

    def note(self, name: str, note: Any) -> None:
        """For a run that goes on with this one: `kept` gives it there under that name, which is no piece's."""
        self._journal.record(name, (), {"rounding": note})

    def read_back(self, piece: Piece) -> Array:
        """float32 that a packed piece stands for as it is in the file."""
        type = piece.value.type
        arrays = {}
        for tensor, component in zip(self.file.tensors[piece.recipe], components(type, {}), strict=True):
            data = _read_at(self._descriptor, component.nbytes, tensor.offset + piece.index * component.nbytes)
            arrays[component.role] = np.frombuffer(data, NUMPY_DTYPES[component.dtype]).reshape(component.shape)
        *_, n, k = map(int, type.shape)
        return decoded(Packed(arrays, format_of(type), n, k, type.layout))

    def write(self, piece: Piece, rounded: Mapping[Value, QTensor], note: Any = None) -> None:
        """Evaluate a piece and write it. rounded: what its `quantize` are, where that is known. note: for a run that
        goes on with this one.

        A piece that is there from an earlier run stays. Raises WeightRangeError for a weight that its format cannot
        hold.
        """
        self._written.add((piece.recipe, piece.index))
        if self._journal.done(piece.name):
            lost = (self._journal.note(piece.name) or {}).get("lost", ())
            self._losses[piece.recipe, piece.index] = Loss(*lost)
            return
        with naming_range(piece.value, self.given):
            packed = None if rounded else self._kernels.pack(piece.value, self.given)
            result = ops.evaluate([piece.value], self.given, rounded)[0] if packed is None else packed
            arrays = _stored_arrays(result)
        tensors = self.file.tensors[piece.recipe]
        parts = []
        for tensor, array in zip(tensors, arrays, strict=True):
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            parts.append((tensor.offset + piece.index * (tensor.component.nbytes // piece.count), data))
            _write_at(self._descriptor, data, parts[-1][0])
        self._losses[piece.recipe, piece.index] = loss = getattr(result, "loss", NO_LOSS)
        noted = {} if loss == NO_LOSS else {"lost": astuple(loss)}
        self._journal.record(piece.name, parts, noted if note is None else noted | {"rounding": note})
        self._advance(sum(tensor.component.nbytes for tensor in tensors) // piece.count)

    def write_rest(self, round: Round | None = None, recall: Recall | None = None) -> None:
        """Write all pieces that are not written yet, codes as `round` makes them."""

        def job(piece: Piece) -> None:
            done = self._journal.done(piece.name)
            if done and recall is not None:
                recall(self.kept(piece.name) or [])
            rounded, notes = {}, list[Any]()
            for value in [] if done or round is None else quantized_in(piece.value):
                assert round is not None
                with naming_range(piece.value, self.given):
                    rounded[value], noted = round(value, self.evaluate(value.inputs[0]))
                notes += noted
            self.write(piece, rounded, notes or None)

        every = (piece for recipe, value in self.file.recipes.items() for piece in pieces(recipe, value))
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for _ in pool.map(job, (piece for piece in every if (piece.recipe, piece.index) not in self._written)):
                pass

    def given(self, leaf: Value) -> Array:
        return reading(self._read)(leaf)


def quantized_in(recipe: Value) -> list[Value]:
    """The `quantize` of a recipe that make codes."""
    found = (value for value in topological_order([recipe]) if value.op == "quantize")
    return [value for value in found if format_of(value.type).has_codes]


@contextmanager
def naming_range(recipe: Value, given: Callable[[Value], Array]) -> Iterator[None]:
    """Says which weight of a recipe it is that overflows its format."""
    try:
        yield
    except OutOfRange as error:
        raise _named(recipe, given, error.format) from error  # type: ignore[attr-defined]


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


def _read_at(descriptor: int, nbytes: int, offset: int) -> bytearray:
    """`nbytes` at `offset`, which are there; one pread moves at most 2 GiB."""
    data = bytearray()
    while len(data) < nbytes:
        data += os.pread(descriptor, nbytes - len(data), offset + len(data))
    return data


def _stored_arrays(result: Any) -> list[Array]:
    """The plain arrays of an evaluated recipe, in the order of storage.components."""
    if isinstance(result, Packed):
        return list(result.components.values())
    if isinstance(result, QTensor):
        return list(rows.pack(result).values())
    return [as_float32(result) if coded.is_coded(result.dtype) else result]
