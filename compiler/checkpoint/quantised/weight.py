"""A matrix of a checkpoint that is stored in codes, whatever tensors of a file it is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.checkpoint.errors import (
    GroupIndexError,
    MissingScaleError,
    NonFiniteWeightError,
    ScaleValueError,
    TensorDtypeError,
    TensorShapeError,
)
from dsv3c.compiler.checkpoint.files import quote
from dsv3c.compiler.checkpoint.stored import FLOAT_DTYPES, Float32, StoredTensor, decoded
from dsv3c.compiler.formats import coded
from dsv3c.compiler.formats.keeping import Coding
from dsv3c.compiler.formats.rounding import chunks

Array = NDArray[Any]
Stored = Mapping[str, StoredTensor]
# Scales up to these keep every product with a code finite in float32.
_LARGEST_SCALE = np.float32(2.0**119)  # times 255
_LARGEST_EXPONENT = 252  # 2^125 times 6


class Readable(Protocol):
    """A vector or matrix that can be read.

    coding: how it is stored in codes, None for floats and for codes that no kind of coded arrays has. decode and coded
    raise a CheckpointError for values that cannot be.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def coding(self) -> Coding | None: ...

    def decode(self, out: Float32 | None = None) -> Float32:
        """The values, written to `out` when it is given."""

    def coded(self) -> Array:
        """An array of coded.KINDS where it is stored in codes, else what `decode` gives."""


class Weight(Readable, Protocol):
    """One as a checkpoint has it. names: of the stored tensors it is made of."""

    @property
    def names(self) -> tuple[str, ...]: ...


@runtime_checkable
class Stack(Weight, Protocol):
    """Matrices of one shape behind one another: of experts, of heads."""

    def cut(self, expert: int, rows: tuple[int, int]) -> Weight:
        """These rows of one of them."""


class Quantisation(Protocol):
    """What a quantization_config says."""

    def find(self, name: str, shape: tuple[int, ...], stored: Stored) -> Weight | None:
        """The weight `name` if it is stored in codes, every tensor of it checked; None if it is not.

        Raises a CheckpointError for codes without what belongs to them.
        """


@dataclass(frozen=True)
class Coded:
    """The codes of a matrix, in one form for all ways to store them.

    codes u8 [N, K]; scale [N, KG], float32 or for E2M1 the exponents u8; zero u8 [N, KG] for INTEGERS, None for others;
    group [K]: which scale and zero belong to a column.
    """

    codes: Array
    scale: Array
    zero: Array | None
    group: Array

    def elements(self, rows: slice = slice(None)) -> Array:
        """[rows, K] of one of coded.KINDS: INTEGERS or E2M1."""
        codes = self.codes[rows]
        out = np.empty(codes.shape, coded.E2M1 if self.zero is None else coded.INTEGERS)
        out["code"] = codes
        self._spread(self.scale[rows], out["scale"])
        if self.zero is not None:
            self._spread(self.zero[rows], out["zero"])
        return out

    def _spread(self, parts: Array, out: Array) -> None:
        """What groups [N, KG] have, to each column of out [N, K]: without an index where they lie in order."""
        rows, columns = out.shape
        size = columns // parts.shape[1]
        if size * parts.shape[1] == columns and (self.group == np.arange(columns) // size).all():
            out.reshape(rows, -1, size)[...] = parts[..., None]
            return
        out[...] = parts[:, self.group]


@dataclass(frozen=True)
class CodedWeight:
    """A matrix that `read` gives the codes of.

    stack: how many matrices lie behind one another, None: it is the only one; `expert` is the one of them that is
    meant. rows: those taken of the matrix, None: all.
    """

    tensors: tuple[StoredTensor, ...]
    matrix: tuple[int, int]
    coding: Coding
    read: Callable[[int | None], Coded]
    stack: int | None = None
    expert: int | None = None
    rows: tuple[int, int] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tensor.info.name for tensor in self.tensors)

    @property
    def shape(self) -> tuple[int, ...]:
        first, last = self.rows or (0, self.matrix[0])
        own = (last - first, self.matrix[1])
        return own if self.stack is None or self.expert is not None else (self.stack, *own)

    def cut(self, expert: int, rows: tuple[int, int]) -> CodedWeight:
        return replace(self, expert=expert, rows=rows)

    def decode(self, out: Float32 | None = None) -> Float32:
        found = self._codes()
        out = np.empty(self.shape, np.float32) if out is None else out
        first = 0 if self.rows is None else self.rows[0]
        for chunk in chunks(*self.shape):
            within = slice(first + chunk.start, min(first + chunk.stop, first + self.shape[0]))
            out[chunk] = coded.values(found.elements(within))
        return out

    def coded(self) -> Array:
        return self._codes().elements(slice(*self.rows) if self.rows else slice(None))

    def _codes(self) -> Coded:
        found = self.read(self.expert)
        for tensor in self.tensors:
            count = math.prod(tensor.info.shape[:-1])
            first, last = (0, count) if self.expert is None else _part(count, self.stack or 1, self.expert)
            tensor.release(first, last)
        self._check_finite(found)
        return found

    def _check_finite(self, found: Coded) -> None:
        """Raises NonFiniteWeightError where a code with its scale could be infinity."""
        largest = _LARGEST_EXPONENT if found.zero is None else _LARGEST_SCALE
        beyond = np.argwhere(found.scale > largest)
        if not beyond.size:
            return
        row, group = beyond[0].tolist()
        position = [row, int(np.flatnonzero(found.group == group)[0])]
        if self.expert is not None:
            position.insert(0, self.expert)
        path, name = self.tensors[0].file.path, self.tensors[0].info.name
        raise NonFiniteWeightError(path=path, tensor=name, found=float("inf"), position=position)


def _part(count: int, parts: int, index: int) -> tuple[int, int]:
    return index * count // parts, (index + 1) * count // parts


def unpack(words: Array, bits: int, count: int) -> Array:
    """u8 [..., count]: numbers of `bits` bits one behind the other along the last axis of little-endian words, the
    first one in the lowest bits; a number may lie in two words."""
    data = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return data[..., :count]
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        numbers = (data[..., None] >> shifts) & np.uint8((1 << bits) - 1)
        return numbers.reshape(*data.shape[:-1], -1)[..., :count]
    digits = np.unpackbits(data, axis=-1, bitorder="little")[..., : count * bits]
    found: Array = np.packbits(digits.reshape(*data.shape[:-1], count, bits), axis=-1, bitorder="little")[..., 0]
    return found


def words(bits: int, count: int) -> int:
    """How many words of 32 bits `count` numbers take."""
    return -(-count * bits // 32)


def tensor_of(
    stored: Stored, name: str, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str] = FLOAT_DTYPES
) -> StoredTensor | None:
    """The stored tensor `name`, None if there is none. Raises TensorShapeError, TensorDtypeError."""
    tensor = stored.get(name)
    if tensor is None:
        return None
    info, path = tensor.info, tensor.file.path
    if info.dtype not in dtypes:
        raise TensorDtypeError(path=path, tensor=name, found=info.dtype, expected=" or ".join(dtypes))
    if info.shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise TensorShapeError(path=path, tensor=name, found=str(list(info.shape)), expected=expected)
    return tensor


def required(
    stored: Stored,
    codes: StoredTensor,
    name: str,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[str] = FLOAT_DTYPES,
) -> StoredTensor:
    """As `tensor_of`, of what belongs to `codes`. Raises MissingScaleError when there is none."""
    tensor = tensor_of(stored, name, shapes, dtypes)
    if tensor is None:
        found, reason = codes.info.dtype, f"there is no {quote(name)}"
        raise MissingScaleError(path=codes.file.path, tensor=codes.info.name, found=found, reason=reason)
    return tensor


def scales(tensor: StoredTensor, expert: int | None = None) -> Float32:
    """The values of a tensor of scales. Raises ScaleValueError unless all are finite and above 0."""
    stored = tensor.array() if expert is None else tensor.array()[expert]
    scale = decoded(stored, tensor.info.dtype)
    good = np.isfinite(scale) & (scale > 0)
    if good.all():
        return scale
    position = tuple(np.argwhere(~good)[0].tolist())
    where = list(position if expert is None else (expert, *position))
    name, path = tensor.info.name, tensor.file.path
    raise ScaleValueError(path=path, tensor=name, found=float(scale[position]), position=where)


def group_index(tensor: StoredTensor | None, columns: int, size: int) -> Array:
    """The group of each column: `tensor` says it, or they follow one another. Raises GroupIndexError."""
    group = np.arange(columns) // (size or columns)
    if tensor is None:
        return group
    found = tensor.array().astype(np.int64)
    wrong = np.flatnonzero((found < 0) | (found > group[-1]))
    if wrong.size:
        column, highest = int(wrong[0]), int(group[-1])
        name, path = tensor.info.name, tensor.file.path
        raise GroupIndexError(path=path, tensor=name, found=int(found[column]), column=column, highest=highest)
    return found
