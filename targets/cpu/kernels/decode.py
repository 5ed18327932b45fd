"""Packed weights of any format as float32, block by block: for products with rows that are not worth rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dsv3c.compiler.formats.grids import E2M1, E4M3, NF4, NF4_VALUES, Integers
from dsv3c.compiler.formats.rows16 import LANES, elements_of, stored_columns
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets import tir as T
from dsv3c.targets.cpu.intrinsics import bf16_pair_to_f32, f16_to_f32, splat
from dsv3c.targets.cpu.kernels.vector import f32, load, load_f32
from dsv3c.targets.cpu.kernels.weights import Weight, code

Expr = Any


def _integers(codes: Expr, zero: Expr) -> Expr:
    return T.Cast(f"float32x{LANES}", T.reinterpret(f"int32x{LANES}", codes)) - zero


def _float16(codes: Expr, bits: int, fraction: int, bias: int) -> Expr:
    """Small floats of `bits` bits, put where float16 has sign, exponent and fraction; a power of two mends the bias."""
    low = T.bitwise_and(codes, splat(T.uint32((1 << bits - 1) - 1), LANES))
    sign = T.shift_left(T.shift_right(codes, splat(T.uint32(bits - 1), LANES)), splat(T.uint32(15), LANES))
    placed = T.bitwise_or(sign, T.shift_left(low, splat(T.uint32(10 - fraction), LANES)))
    half = T.reinterpret(f"float16x{LANES}", T.Cast(f"uint16x{LANES}", placed))
    return f16_to_f32(half, LANES) * f32(2.0 ** (15 - bias), LANES)


def _e4m3(codes: Expr, zero: Expr) -> Expr:
    return _float16(codes, bits=8, fraction=3, bias=7)


def _e2m1(codes: Expr, zero: Expr) -> Expr:
    return _float16(codes, bits=4, fraction=1, bias=1)


def _nf4(codes: Expr, zero: Expr) -> Expr:
    """By halves of what is left of the table: no instruction of every level looks up sixteen."""
    found = [f32(value, LANES) for value in NF4_VALUES]
    for bit in range(4):
        own = T.bind(T.bitwise_and(codes, splat(T.uint32(1 << bit), LANES)))
        pairs = list(zip(found[::2], found[1::2], strict=True))
        found = [T.bind(T.Select(own > splat(T.uint32(0), LANES), high, low)) for low, high in pairs]
    return found[0]


# By grid: (uint32 lanes of codes, float32 lanes of the code that stands for 0) -> float32 lanes, before the scale.
NUMBERS: Mapping[type, Callable[[Expr, Expr], Expr]] = {Integers: _integers, E4M3: _e4m3, E2M1: _e2m1, NF4: _nf4}


def decodes(format: WeightFormat) -> bool:
    """Whether blocks of it can be decoded."""
    return not format.has_codes or type(format.grid) in NUMBERS


def decoded_columns(format: WeightFormat, k: int) -> int:
    """Columns of a decoded block: K, and what its format pads it to, and one if they are odd."""
    padded = stored_columns(format, k)
    return padded + padded % 2


def decode_block(w: Weight, block: Expr, body: Callable[[Expr, Expr, Expr], None]) -> None:
    """body(i, column 2i, column 2i + 1) for all pairs of columns of a block, each float32 of its sixteen rows."""
    data = w.start(block)
    if not w.format.has_codes:
        _decode_floats(w, data, body)
        return
    planes, groups, number = w.planes, w.format.scale_groups(w.k), NUMBERS[type(w.format.grid)]
    columns, scales = w.format.padded_k(w.k) // groups, w.scale_start(block)
    sharing = max(1, planes.columns // columns)  # groups of a unit
    units = max(1, columns // planes.columns)  # of a group
    with T.serial(0, groups // sharing) as g:
        factors = [_factors(w, T.bind(scales + T.Cast("int64", g * sharing + i) * LANES)) for i in range(sharing)]
        with T.serial(0, units) as i:
            unit = T.bind(g * units + i)
            words = w.words(w.unit_at(data, unit))
            values = []
            for at in range(planes.columns):
                scale, zero = factors[at * sharing // planes.columns]
                values.append(T.bind(number(code(planes, words, at), zero) * scale))
            for pair in range(planes.columns // 2):
                body(unit * (planes.columns // 2) + pair, values[2 * pair], values[2 * pair + 1])


def _factors(w: Weight, at: Expr) -> tuple[Expr, Expr]:
    """(scale, code that stands for 0) of the group whose scales are at an offset."""
    scale = T.bind(w.scales(at))
    if w.zero is None:
        return scale, f32(w.format.zero_point, LANES)
    return scale, T.bind(T.Cast(f"float32x{LANES}", load(w.zero, at, LANES)))


def _decode_floats(w: Weight, data: Expr, body: Callable[[Expr, Expr, Expr], None]) -> None:
    columns, pairs = stored_columns(w.format, w.k), elements_of(w.format).together == 2

    def column(at: Expr) -> Expr:
        return T.bind(load_f32(w.data, data + T.Cast("int64", at) * LANES, LANES, w.format.type_name))

    with T.serial(0, columns // 2) as i:
        if pairs:
            both = load(w.data, data + T.Cast("int64", i) * (2 * LANES), 2 * LANES)
            low, high = bf16_pair_to_f32(T.bind(T.reinterpret(f"uint32x{LANES}", both)), LANES)
        else:
            low, high = column(i * 2), column(i * 2 + 1)
        body(i, low, high)
    if columns % 2:
        body(T.int32(w.k // 2), column(T.int32(w.k - 1)), f32(0, LANES))
