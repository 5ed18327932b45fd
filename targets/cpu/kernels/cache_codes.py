"""Rows of the cache that are codes (compiler/formats/coded_rows.py): codes to and from float32, and their scales.

Codes come as float32 that a factor, which `factor` has of each row, makes the numbers they stand for. Of int8 it is the
scale. fp8 is put into a float16 whose exponent then lies eight too low, which keeps every number, the smallest as well,
and is an instruction on all levels: the factor makes up for these eight.
"""

from __future__ import annotations

from typing import Any

from dsv3c.compiler.formats.coded_rows import LARGEST, LEAST, scales_at
from dsv3c.targets import tir as T
from dsv3c.targets.calls.cache import Paging
from dsv3c.targets.cpu.intrinsics import f16_to_f32, splat, typed
from dsv3c.targets.cpu.kernels.frame import Buffer
from dsv3c.targets.cpu.kernels.vector import columns, f32, load, store

Expr = Any

_BESIDE = {"int8": 1.0, "fp8": 2.0**8}  # what the float32 of a code is too small by
_SMALLEST_NORMAL = 2.0**-6  # of fp8; its subnormals are multiples of 2^-9, as are float32 from 2^14 to 2^15


def parts(paging: Paging) -> tuple[tuple[int, int], ...]:
    """(columns, first of them) of the latent and of the key."""
    return (paging.rank, 0), (paging.d, paging.rank)


def factor(cache: Buffer, row: Expr, part: int, paging: Paging) -> Expr:
    """By what the codes of a part (0 the latent, 1 the key) of the row that starts at `row` are multiplied."""
    scale = T.reinterpret("float32", load(cache, row + (scales_at(paging.width) + 4 * part), 4))
    beside = _BESIDE[paging.element]
    return T.bind(scale if beside == 1 else scale * f32(beside))


def load_codes(cache: Buffer, at: Expr, lanes: int, element: str) -> Expr:
    """The codes from byte `at` on as float32, before the factor."""
    signed = T.reinterpret(typed("int8", lanes), load(cache, at, lanes))
    if element == "int8":
        return T.Cast(typed("float32", lanes), T.Cast(typed("int32", lanes), signed))
    # seeeemmm: bits 7 to 13 and the sign, whose copy in bit 14 is taken away.
    wide = T.reinterpret(typed("uint16", lanes), T.Cast(typed("int16", lanes), signed))
    bits = T.bitwise_and(T.shift_left(wide, splat(T.uint16(7), lanes)), splat(T.uint16(0xBF80), lanes))
    return f16_to_f32(T.reinterpret(typed("float16", lanes), bits), lanes)


def decode_row(cache: Buffer, row: Expr, part: int, paging: Paging, out: Buffer, at: Expr) -> None:
    """A part of the row that starts at `row` as float32 from out[at] on."""
    (count, first), scale = parts(paging)[part], factor(cache, row, part, paging)

    def column(c: Expr, lanes: int) -> None:
        codes = load_codes(cache, row + first + c, lanes, paging.element)
        store(out, at + c, codes * splat(scale, lanes), lanes)

    columns(count, column)


def put_scale(cache: Buffer, row: Expr, part: int, paging: Paging, largest: Expr) -> Expr:
    """Write the scale of a part whose largest magnitude is `largest`; gives what its numbers are multiplied by before
    they are rounded."""
    there, most = T.bind(largest >= f32(LEAST)), LARGEST[paging.element]
    scale = T.bind(T.Select(there, largest * f32(1 / most), f32(0)))
    store(cache, row + (scales_at(paging.width) + 4 * part), T.reinterpret("uint8x4", scale), 4)
    return T.bind(T.Select(there, f32(most) / T.max(largest, f32(LEAST)), f32(0)))


def store_codes(cache: Buffer, at: Expr, scaled: Expr, lanes: int, element: str) -> None:
    """Round float32 lanes to codes, to nearest even."""
    if element == "int8":
        codes = T.Cast(typed("int8", lanes), T.Cast(typed("int32", lanes), T.nearbyint(scaled)))
        store(cache, at, T.reinterpret(typed("uint8", lanes), codes), lanes)
        return
    store(cache, at, T.Cast(typed("uint8", lanes), _fp8(T.bind(scaled), lanes)), lanes)


def _fp8(x: Expr, lanes: int) -> Expr:
    """The code of each lane, in 32 bits."""

    def word(value: int) -> Expr:
        return splat(T.uint32(value), lanes)

    def bits_of(value: Expr) -> Expr:
        return T.reinterpret(typed("uint32", lanes), value)

    size = T.bind(T.min(T.fabs(x), f32(LARGEST["fp8"], lanes)))
    bits = T.bind(bits_of(size))
    odd = T.bitwise_and(T.shift_right(bits, word(20)), word(1))
    normal = T.shift_right(bits + word(0x7FFFF) + odd, word(20)) - word(120 << 3)
    subnormal = bits_of(size + f32(2.0**14, lanes)) - word((127 + 14) << 23)
    sign = T.bitwise_and(T.shift_right(bits_of(x), word(24)), word(0x80))
    return T.bitwise_or(T.Select(size < f32(_SMALLEST_NORMAL, lanes), subnormal, normal), sign)
