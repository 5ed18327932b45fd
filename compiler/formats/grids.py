"""What the stored elements of a weight stand for, before any scale."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.formats import fp8
from dsv3c.compiler.formats.elements import NUMPY_DTYPES

Array = NDArray[Any]


class Grid(Protocol):
    """Codes of `bits` bits, each u8. The code `zero` stands for 0: it fills what is padded."""

    @property
    def bits(self) -> int: ...

    @property
    def zero(self) -> int: ...

    def values(self, codes: Array, zero: Array | None) -> Array:
        """float32 that codes stand for; zero: the code that stands for 0, of each, where it is not the grid's own."""

    def encode(self, scaled: Array, zero: Array | None) -> Array:
        """The nearest codes u8 of float32 numbers that are divided by their scale already; zero as in `values`."""

    def largest(self, own_zeros: bool) -> float:
        """The largest magnitude that a code can stand for, with zeros of their own for groups or without."""


@dataclass(frozen=True)
class PlainFloats:
    """Not codes but the numbers themselves, of IR dtype `element`."""

    element: str

    @property
    def bits(self) -> int:
        return int(NUMPY_DTYPES[self.element].itemsize) * 8


@dataclass(frozen=True)
class Integers:
    """Whole numbers: a code of `lowest`, …, 2^bits - 1 stands for code - zero; by itself zero is the middle code.

    lowest: 1 leaves as many codes below the middle as above it; 0 gives the lower side one more.
    """

    bits: int
    lowest: int = 0

    @property
    def zero(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def highest(self) -> int:
        return (1 << self.bits) - 1

    def values(self, codes: Array, zero: Array | None) -> Array:
        found = codes.astype(np.float32)
        found -= np.float32(self.zero) if zero is None else zero
        return found

    def encode(self, scaled: Array, zero: Array | None) -> Array:
        return self.codes(self.nearest(scaled, zero), zero)

    def nearest(self, scaled: Array, zero: Array | None) -> Array:
        """What the codes of `encode` stand for, without the way by them."""
        found = np.rint(scaled)
        middle = np.float32(self.zero) if zero is None else zero
        # np.clip does the same, but for a column of a matrix its call takes longer than the work.
        np.maximum(found, self.lowest - middle, out=found)
        np.minimum(found, self.highest - middle, out=found)
        return found

    def codes(self, values: Array, zero: Array | None) -> Array:
        """u8 of numbers that codes stand for."""
        return (values + (np.float32(self.zero) if zero is None else zero)).astype(np.uint8)

    def largest(self, own_zeros: bool) -> float:
        return float(self.highest - self.lowest if own_zeros else self.zero - self.lowest)


@dataclass(frozen=True)
class E4M3:
    """float8_e4m3fn, see fp8."""

    bits: int = 8
    zero: int = 0

    def values(self, codes: Array, zero: Array | None) -> Array:
        return fp8.decode(codes)

    def encode(self, scaled: Array, zero: Array | None) -> Array:
        return fp8.rounded(scaled)

    def largest(self, own_zeros: bool) -> float:
        return fp8.LARGEST


@dataclass(frozen=True)
class E2M1:
    """float4_e2m1fn: sign, two bits of exponent, one of fraction. Ties go to the even code."""

    bits: int = 4
    zero: int = 0

    @property
    def steps(self) -> Steps:
        """0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives are whole halves."""
        halves = (0, 1, 2, 3, 4, 6, 8, 12)
        return Steps((*(12 + half for half in halves), *(12 - half for half in halves)), 12, 0.5)

    def values(self, codes: Array, zero: Array | None) -> Array:
        return np.take(_E2M1_VALUES, codes)

    def encode(self, scaled: Array, zero: Array | None) -> Array:
        within = np.clip(scaled, -E2M1_LARGEST, E2M1_LARGEST)
        return within.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)

    def largest(self, own_zeros: bool) -> float:
        return E2M1_LARGEST


@dataclass(frozen=True)
class Steps:
    """Numbers of a grid of few bits as integers: code c stands for (table[c] - zero) * size, the table below 256."""

    table: tuple[int, ...]
    zero: int
    size: float

    @property
    def values(self) -> tuple[float, ...]:
        """Of each code."""
        return tuple((entry - self.zero) * self.size for entry in self.table)


E2M1_LARGEST = 6.0
_E2M1_VALUES = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)

# The quantiles of a normal distribution by QLoRA (Dettmers and others 2023, arXiv 2305.14314, appendix E), in 127ths.
_NF4 = Steps((0, 39, 60, 77, 91, 104, 115, 127, 137, 147, 158, 170, 183, 198, 219, 254), 127, 1 / 127)
NF4_VALUES = _NF4.values
_NF4_VALUES = np.array(NF4_VALUES, np.float32)


@dataclass(frozen=True)
class NF4:
    """The sixteen numbers of 4-bit NormalFloat to the nearest 127th, in rising order. A tie takes the lower code."""

    bits: int = 4
    zero: int = 7

    @property
    def steps(self) -> Steps:
        return _NF4

    def values(self, codes: Array, zero: Array | None) -> Array:
        return np.take(_NF4_VALUES, codes)

    def encode(self, scaled: Array, zero: Array | None) -> Array:
        codes = np.zeros(scaled.shape, np.uint8)
        for low, high in pairwise(_NF4_VALUES):
            codes += scaled > (low + high) / 2
        return codes

    def largest(self, own_zeros: bool) -> float:
        return 1.0
