"""Rows of the cache that are codes (compiler/formats/coded_rows.py): whole words, four codes in each, then two scales.

Codes come as float32 that the scale of their part makes the numbers they stand for.
"""

from __future__ import annotations

from dsv3c.compiler.formats.coded_rows import LARGEST, LEAST, scales_at
from dsv3c.targets import tir as T
from dsv3c.targets.calls.cache import Paging
from dsv3c.targets.gpu.kernels.frame import Buffer, Expr, f32
from dsv3c.targets.gpu.kernels.words import bit_field, e4m3, e4m3_bits

CODES = 4  # in a word


def row_words(paging: Paging) -> int:
    return paging.row_bytes // 4


def code_words(paging: Paging) -> int:
    """Words of a row with codes; the scale of the latent is behind them, then that of the key."""
    return scales_at(paging.width) // 4


def number(word: Expr, column: Expr, element: str) -> Expr:
    """The code in byte `column` of a word, 0 … 3, before its scale."""
    byte = T.bind(bit_field(word, column * 8, 8))
    if element == "fp8":
        return e4m3(byte)
    value = T.Cast("int32", byte)
    return T.Cast("float32", T.Select(byte > T.uint32(127), value - 256, value))


def scale(cache: Buffer, row: Expr, part: Expr, paging: Paging) -> Expr:
    """Of a part (0 the latent, 1 the key) of the row whose first word is `row`."""
    return T.reinterpret("float32", T.bind(cache[row + (part + code_words(paging))]))


def scale_of(cache: Buffer, row: Expr, column: Expr, paging: Paging) -> Expr:
    """Of the part that a column is in."""
    return T.bind(scale(cache, row, T.Select(column < paging.rank, T.int32(0), T.int32(1)), paging))


def scale_and_inverse(largest: Expr, element: str) -> tuple[Expr, Expr]:
    """The scale of numbers whose largest magnitude is `largest`, and what they are multiplied by to be rounded."""
    there, most = T.bind(largest >= f32(LEAST)), LARGEST[element]
    inverse = T.Select(there, f32(most) / T.max(largest, f32(LEAST)), f32(0))
    return T.bind(T.Select(there, largest * f32(1 / most), f32(0))), T.bind(inverse)


def rounded(scaled: Expr, element: str) -> Expr:
    """The code of a number that was scaled, in the low byte of a u32."""
    if element == "fp8":
        return e4m3_bits(scaled)
    return T.bitwise_and(T.Cast("uint32", T.Cast("int32", T.nearbyint(scaled))), T.uint32(0xFF))
