"""How one row of a weight is stored along K, by layout: what a row of the table of formats names for each layout."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
WORD = np.dtype("<u4")  # what rows16 moves as one
WORD_BITS = 32
QUAD = 4  # codes that stand in the bytes of a word when it is taken apart
EACH = 0x01010101  # times a byte: that byte four times


@dataclass(frozen=True)
class Elements:
    """rows16: numbers as they are, `together` neighbours along K side by side."""

    together: int = 1

    @property
    def columns(self) -> int:
        """Columns of K that are stored as one."""
        return self.together


@dataclass(frozen=True)
class Planes:
    """rows16: codes as words of 32 bits, cut into planes of `widths` bits each (8, 4, 2 or 1), the lowest bits first.

    A word of a plane has fields of four bytes each: byte j of field f are the bits of code 4f + j. A unit is a word of
    the narrowest plane and the words of the others for the same columns, plane by plane; it is what is stored as one.
    """

    widths: tuple[int, ...]

    @property
    def bits(self) -> int:
        return sum(self.widths)

    @property
    def columns(self) -> int:
        """Columns of K in a unit."""
        return WORD_BITS // min(self.widths)

    @property
    def wide_columns(self) -> int:
        """Columns of K in a word of the widest plane."""
        return WORD_BITS // max(self.widths)

    @property
    def words(self) -> int:
        """Words of a unit."""
        return self.columns * self.bits // WORD_BITS

    @property
    def planes(self) -> list[tuple[int, int, int]]:
        """(first word in a unit, bits, bits of a code below it) of each plane."""
        found, first, below = [], 0, 0
        for width in self.widths:
            found.append((first, width, below))
            first += self.columns * width // WORD_BITS
            below += width
        return found

    def pack(self, codes: Array) -> Array:
        """Codes u8 [..., K], K whole units, as words [..., K / columns * words]."""
        quads = np.ascontiguousarray(codes).view(WORD)
        planes = [self._plane(quads, width, below) for _, width, below in self.planes]
        if len(planes) == 1:
            return planes[0]
        counts = [self.columns * width // WORD_BITS for width in self.widths]
        units = [plane.reshape(*plane.shape[:-1], -1, count) for plane, count in zip(planes, counts, strict=True)]
        return np.concatenate(units, axis=-1).reshape(*quads.shape[:-1], -1)

    def _plane(self, quads: Array, width: int, below: int) -> Array:
        """The words of one plane."""
        if width == 8:
            return quads
        own = quads >> np.uint32(below) & _each(width) if width < self.bits else quads
        fields = range(8 // width)
        return reduce(np.bitwise_or, [own[..., field :: len(fields)] << np.uint32(field * width) for field in fields])

    def unpack(self, words: Array) -> Array:
        """Inverse of `pack`."""
        units = words.reshape(*words.shape[:-1], -1, self.words)
        quads = np.zeros((*words.shape[:-1], units.shape[-2] * self.columns // QUAD), WORD)
        for first, width, below in self.planes:
            plane = units[..., first : first + self.columns * width // WORD_BITS].reshape(*words.shape[:-1], -1)
            fields = 8 // width
            for field in range(fields):
                quads[..., field::fields] |= (plane >> np.uint32(field * width) & _each(width)) << np.uint32(below)
        return quads.view(np.uint8)


def _each(width: int) -> np.uint32:
    """The lowest bits of every byte."""
    return np.uint32(((1 << width) - 1) * EACH)


@dataclass(frozen=True)
class Dense:
    """nbits: codes of `bits` bits (8, 4 or 2) one behind the other, the first in the lowest bits of a byte."""

    bits: int


@dataclass(frozen=True)
class Signed:
    """rows: codes less the grid's zero, as int8."""


Packing = Elements | Planes | Dense | Signed
