"""Rows of a cache that are codes: the first `split` columns share one scale, the others another.

A row lies in memory as a byte a column, zeros up to whole words, both scales as float32, zeros up to whole 16 bytes: so
whatever reads a row has its scales beside it, copies of pages take both along, and no vector of sixteen codes that
starts at a multiple of sixteen columns crosses a cache line.

    value = code * scale     scale = largest magnitude of the part / LARGEST, 0 of a part that is zeros
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.formats import fp8

Array = NDArray[Any]

# What a row's codes are by name: whole numbers from -127 to 127, and float8_e4m3fn.
LARGEST = {"int8": 127.0, "fp8": fp8.LARGEST}
LEAST = 1e-30  # a part that is nowhere as large is zeros: its scale would have no inverse

_PARTS = ("first", "rest")
_ELEMENTS = {"int8": np.dtype(np.int8), "fp8": np.dtype(np.uint8)}
_NAMES = {element: name for name, element in _ELEMENTS.items()}
_TYPE = re.compile(rf"({'|'.join(LARGEST)})-at([1-9][0-9]{{0,7}})")
_WORD, _LINE = 4, 16


@dataclass(frozen=True)
class CodedRows:
    """codes: a key of LARGEST. split: columns of the first part."""

    codes: str
    split: int

    @classmethod
    def of_type(cls, dtype: str) -> CodedRows | None:
        """What the dtype of a type in the IR stands for; None for one that is no coded row."""
        match = _TYPE.fullmatch(dtype)
        return cls(match[1], int(match[2])) if match else None

    @property
    def type_name(self) -> str:
        """The dtype in the IR."""
        return f"{self.codes}-at{self.split}"

    def array_dtype(self, width: int) -> np.dtype[Any]:
        """Of the element of a numpy array that is a row of `width` columns, byte for byte as it lies in memory."""
        element = _ELEMENTS[self.codes]
        return np.dtype(
            {
                "names": [*_PARTS, "scales"],
                "formats": [(element, (self.split,)), (element, (width - self.split,)), (np.float32, (2,))],
                "offsets": [0, self.split, scales_at(width)],
                "itemsize": row_bytes(width),
            }
        )


def scales_at(width: int) -> int:
    """Byte of a row where its scales begin."""
    return -(-width // _WORD) * _WORD


def row_bytes(width: int) -> int:
    return -(-(scales_at(width) + 2 * _WORD) // _LINE) * _LINE


def is_coded(dtype: np.dtype[Any]) -> bool:
    """Whether an array of `dtype` has a coded row as each element."""
    return dtype.names == (*_PARTS, "scales")


def encode(rows: Array, dtype: np.dtype[Any]) -> Array:
    """float32 rows [T, L], to nearest, as [T] of an `array_dtype`."""
    out, start = np.zeros(len(rows), dtype), 0
    for number, name in enumerate(_PARTS):
        element, (count,) = dtype[name].base, dtype[name].shape
        part = np.asarray(rows[:, start : start + count], np.float32)
        largest = np.abs(part).max(axis=1, initial=0).astype(np.float32)
        there, most = largest >= np.float32(LEAST), np.float32(LARGEST[_NAMES[element]])
        inverse = np.where(there, most / np.where(there, largest, np.float32(1)), np.float32(0))
        out[name] = _rounded(part * inverse[:, None], element)
        out["scales"][:, number] = np.where(there, largest * (np.float32(1) / most), np.float32(0))
        start += count
    return out


def decode(rows: Array) -> Array:
    """float32 [..., L] of coded rows [...]."""
    parts = []
    for number, name in enumerate(_PARTS):
        codes = rows[name]
        values = fp8.decode(codes) if codes.dtype == _ELEMENTS["fp8"] else codes.astype(np.float32)
        parts.append(values * rows["scales"][..., number, None])
    found: Array = np.concatenate(parts, axis=-1)
    return found


def stored(rows: Array, dtype: np.dtype[Any]) -> Array:
    """float32 rows [T, L] as a cache of `dtype` has them: coded, or rounded to a plain type."""
    return encode(rows, dtype) if is_coded(dtype) else rows.astype(dtype)


def _rounded(scaled: Array, element: np.dtype[Any]) -> Array:
    if element == _ELEMENTS["int8"]:
        return np.rint(scaled).astype(np.int8)
    return fp8.rounded(scaled)
