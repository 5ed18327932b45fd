"""Reader of the GGUF container, stricter than its reference implementation.

Format (github.com/ggml-org/ggml, docs/gguf.md; llama.cpp, ggml/src/ggml-cpu and gguf.cpp), all little-endian:

    "GGUF", version u32, number of tensors u64, number of keys u64
    a key each:    string, type u32, value; an array is type u32, count u64, the values; a string length u64, bytes
    a tensor each: string, number of dims u32, dims u64 from the innermost one on, type u32, offset u64
    padding to the alignment, then the data, each tensor at its offset and padded to the alignment

The package gguf has a reader too. It believes counts, lengths and offsets, makes arrays of numpy for every single
string, and knows no limits, so files of unknown origin are not given to it.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.checkpoint.errors import GgufFormatError
from dsv3c.compiler.checkpoint.files import MAX_TABLE_BYTES, quote
from dsv3c.compiler.checkpoint.mapped import TensorFile, TensorInfo

Strings = tuple[bytes, ...]
Value = int | float | bool | str | Strings | NDArray[Any]

# What honest files stay far below: DeepSeek-V3's has 50 keys, 1100 tensors and 260 thousand strings.
MAX_KEYS = 10_000
MAX_TENSORS = 50_000
MAX_STRINGS = 1_000_000
MAX_NAME = 64  # GGML_MAX_NAME
MAX_KEY = 1 << 16
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_ALIGNMENT = 1 << 20
MAX_COUNT = 2**63 - 1
VERSIONS = (2, 3)
_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_NUMBERS: Mapping[int, str] = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip


@dataclass(frozen=True)
class Type:
    """How the elements of a tensor lie: blocks of so many along the innermost dim, in so many bytes each."""

    name: str
    block: int
    nbytes: int


# By the numbers of enum ggml_type (ggml.h); sizes of blocks as in ggml-common.h.
TYPES: Mapping[int, Type] = {
    0: Type("F32", 1, 4), 1: Type("F16", 1, 2), 30: Type("BF16", 1, 2),
    2: Type("Q4_0", 32, 18), 3: Type("Q4_1", 32, 20), 6: Type("Q5_0", 32, 22), 7: Type("Q5_1", 32, 24),
    8: Type("Q8_0", 32, 34), 39: Type("MXFP4", 32, 17),
    10: Type("Q2_K", 256, 84), 11: Type("Q3_K", 256, 110), 12: Type("Q4_K", 256, 144), 13: Type("Q5_K", 256, 176),
    14: Type("Q6_K", 256, 210),
    16: Type("IQ2_XXS", 256, 66), 17: Type("IQ2_XS", 256, 74), 18: Type("IQ3_XXS", 256, 98), 19: Type("IQ1_S", 256, 50),
    20: Type("IQ4_NL", 32, 18), 21: Type("IQ3_S", 256, 110), 22: Type("IQ2_S", 256, 82), 23: Type("IQ4_XS", 256, 136),
    29: Type("IQ1_M", 256, 56),
}  # fmt: skip
FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
BLOCKS = tuple(kind.name for kind in TYPES.values() if kind.name not in FLOATS)


class GgufFile(TensorFile):
    """`values` are those of its keys: arrays of strings as bytes, of numbers as numpy has them. `rename` makes the
    names in `tensors` of those in the file."""

    fault = GgufFormatError

    def __init__(self, path: Path, rename: Callable[[str], str] = str) -> None:
        """Raises as TensorFile, GgufFormatError for anything that breaks the format."""
        super().__init__(path)
        try:
            _check_magic(self._map[:8])
            header = _Header(self._map, self.size)
            self.values = header.values
            self.tensors = header.tensors(rename)
        except _Fault as fault:
            raise GgufFormatError(path=path, reason=fault) from fault

    def array(self, name: str) -> NDArray[Any]:
        """BF16 comes as its bit patterns (uint16), a type of blocks as their bytes: uint8 [..., rows, bytes a row]."""
        info = self.tensors[name]
        if info.dtype in FLOATS:
            return self._view(info, np.dtype(FLOATS[info.dtype]), info.shape)
        row = (info.end - info.begin) // math.prod(info.shape[:-1])
        return self._view(info, np.dtype("u1"), (*info.shape[:-1], row))


class _Fault(Exception):
    """The reason why a file is none."""


def _check_magic(start: bytes) -> None:
    if start[:4] != _MAGIC:
        raise _Fault(f"it begins with {quote(start[:4].decode('latin-1'))}, not with GGUF")
    version = int.from_bytes(start[4:8], "little")
    if version in VERSIONS:
        return
    if int.from_bytes(start[4:8], "big") in VERSIONS:
        raise _Fault("it is big-endian")
    raise _Fault(f"its version is {version}, {' and '.join(map(str, VERSIONS))} are read")


class _Header:
    """Keys and tensors of a file; `at` is how far it is read. Every count is compared with the bytes that are left
    before anything is made of it."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data = data
        self.size = size
        self.end = min(size, MAX_TABLE_BYTES)
        self.at = 8
        self.strings_left = MAX_STRINGS
        self.count = self.integer("<Q", "the number of tensors", MAX_TENSORS)
        self.values = self._keys(self.integer("<Q", "the number of keys", MAX_KEYS))

    def tensors(self, rename: Callable[[str], str]) -> dict[str, TensorInfo]:
        """Raises _Fault unless they follow one another in the data, each with its padding."""
        alignment = self._alignment()
        entries = [self._entry() for _ in range(self.count)]
        begin = -(-self.at // alignment) * alignment
        found: dict[str, TensorInfo] = {}
        expected = 0
        for name, kind, shape, offset in entries:
            where = f"tensor {quote(name)}"
            if offset != expected:
                raise _Fault(f"{where} has the offset {offset}, expected {expected}, where the one before it ends")
            nbytes = math.prod(shape) // kind.block * kind.nbytes
            if begin + offset + nbytes > self.size:
                raise _Fault(f"it is truncated: {where} ends at byte {begin + offset + nbytes}, it has {self.size}")
            known = rename(name)
            if known in found:
                raise _Fault(f"{where} is given twice")
            found[known] = TensorInfo(known, kind.name, shape, begin + offset, begin + offset + nbytes)
            expected = offset + -(-nbytes // alignment) * alignment
        return found

    def integer(self, format: str, what: str, most: int) -> int:
        (value,) = self._unpack(format, what)
        if value > most:
            raise _Fault(f"{what} is {value}, at most {most} are read")
        return int(value)

    def _keys(self, count: int) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for number in range(count):
            key = self._text(f"the name of key {number}", MAX_KEY)
            if not key or key in values:
                raise _Fault(f"key {number} has no name" if not key else f"the key {quote(key)} is given twice")
            what = f"the key {quote(key)}"
            values[key] = self._value(self.integer("<I", f"the type of {what}", MAX_COUNT), what)
        return values

    def _value(self, kind: int, what: str) -> Value:
        if kind == _STRING:
            return self._text(what, self.end)
        if kind == _ARRAY:
            return self._array(what)
        dtype = np.dtype(self._number_type(kind, what))
        value: Value = np.frombuffer(self._take(dtype.itemsize, what), dtype)[0].item()
        return value

    def _array(self, what: str) -> Value:
        (kind,) = self._unpack("<I", what)
        (count,) = self._unpack("<Q", what)
        if kind == _ARRAY:
            raise _Fault(f"{what} is an array of arrays")
        if kind == _STRING:
            return self._strings(count, what)
        dtype = np.dtype(self._number_type(kind, what))
        data = self._take(count * dtype.itemsize, what)
        return np.frombuffer(data, dtype) if data else np.empty(0, dtype)

    def _strings(self, count: int, what: str) -> Strings:
        if count > self.strings_left:
            raise _Fault(f"{what} has {count} strings, {self.strings_left} more are read of the {MAX_STRINGS} in all")
        if 8 * count > self.end - self.at:
            raise _Fault(f"{what} has {count} strings, for which {self.end - self.at} bytes are left")
        self.strings_left -= count
        data, at, end, length_of, found = self.data, self.at, self.end, struct.Struct("<Q").unpack_from, []
        for number in range(count):
            (length,) = length_of(data, at) if at + 8 <= end else (end,)
            at += 8
            if length > end - at:
                raise _Fault(f"string {number} of {what} reaches beyond {self._beyond()}")
            found.append(data[at : at + length])
            at += length
        self.at = at
        return tuple(found)

    def _number_type(self, kind: int, what: str) -> str:
        if kind not in _NUMBERS:
            raise _Fault(f"{what} is of type {kind}, which is not one of GGUF")
        return _NUMBERS[kind]

    def _alignment(self) -> int:
        alignment = self.values.get("general.alignment", 32)
        powers = type(alignment) is int and 8 <= alignment <= MAX_ALIGNMENT and alignment & (alignment - 1) == 0
        if not powers or not isinstance(alignment, int):
            raise _Fault(f"general.alignment is {quote(alignment)}, expected a power of two from 8 to {MAX_ALIGNMENT}")
        return alignment

    def _entry(self) -> tuple[str, Type, tuple[int, ...], int]:
        """(name, type, shape with the innermost dim last, offset)."""
        name = self._text("the name of a tensor", MAX_NAME)
        what = f"tensor {quote(name)}"
        if not name:
            raise _Fault("a tensor has no name")
        rank = self.integer("<I", f"the number of dims of {what}", MAX_DIMS)
        dims = self._unpack(f"<{rank}Q", what)
        number, offset = self._unpack("<IQ", what)
        if not rank or not all(dims):
            raise _Fault(f"{what} has the dims {list(dims)}, expected 1 to {MAX_DIMS} above 0")
        if number not in TYPES:
            known = ", ".join(kind.name for kind in TYPES.values())
            raise _Fault(f"{what} is of type {number}, which is not read; read are {known}")
        kind = TYPES[number]
        if dims[0] % kind.block:
            raise _Fault(f"{what} has rows of {dims[0]}, which are no blocks of {kind.block} of {kind.name}")
        if math.prod(dims) * kind.nbytes > MAX_COUNT:
            raise _Fault(f"{what} has the dims {list(dims)}, whose product overflows")
        return name, kind, tuple(reversed(dims)), offset

    def _text(self, what: str, most: int) -> str:
        length = self.integer("<Q", f"the length of {what}", MAX_COUNT)
        if length > most:
            raise _Fault(f"{what} has {length} bytes, at most {most} are read")
        try:
            return self._take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _Fault(f"{what} is not UTF-8") from error

    def _unpack(self, format: str, what: str) -> tuple[Any, ...]:
        return struct.unpack(format, self._take(struct.calcsize(format), what))

    def _take(self, count: int, what: str) -> bytes:
        if count > self.end - self.at:
            raise _Fault(f"{what} reaches beyond {self._beyond()}")
        self.at += count
        return self.data[self.at - count : self.at]

    def _beyond(self) -> str:
        if self.end == self.size:
            return f"the end of the file, {self.size} bytes"
        return f"the {MAX_TABLE_BYTES} bytes that are read of a header"
