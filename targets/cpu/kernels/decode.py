"""Packed weights as float32, block by block, of formats without integer products: for many products of floats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dsv3c.compiler.formats.grids import E4M3
from dsv3c.compiler.formats.packings import QUAD
from dsv3c.compiler.formats.rows16 import LANES, elements_of, stored_columns
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets import tir as T
from dsv3c.targets.cpu.intrinsics import bf16_pair_to_f32, f16_to_f32, splat
from dsv3c.targets.cpu.kernels.vector import f32, load, load_f32
from dsv3c.targets.cpu.kernels.weights import Weight

Expr = Any


def _e4m3(codes: Expr) -> Expr:
    """Put where float16 has sign, exponent and fraction; a power of two mends the bias."""
    low = T.bitwise_and(codes, splat(T.uint32(0x7F), LANES))
    sign = T.shift_left(T.shift_right(codes, splat(T.uint32(7), LANES)), splat(T.uint32(15), LANES))
    placed = T.bitwise_or(sign, T.shift_left(low, splat(T.uint32(7), LANES)))
    half = T.reinterpret(f"float16x{LANES}", T.Cast(f"uint16x{LANES}", placed))
    return f16_to_f32(half, LANES) * f32(2.0**8, LANES)


# By grid, whose codes have eight bits: uint32 lanes of codes -> float32 lanes, before the scale.
NUMBERS: Mapping[type, Callable[[Expr], Expr]] = {E4M3: _e4m3}


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
    number, groups, scales = NUMBERS[type(w.format.grid)], w.format.scale_groups(w.k), w.scale_start(block)
    units = w.format.padded_k(w.k) // groups // QUAD  # of a group
    with T.serial(0, groups) as g:
        scale = T.bind(w.scales(scales + T.Cast("int64", g) * LANES))
        with T.serial(0, units) as i:
            unit = T.bind(g * units + i)
            (word,) = w.words(w.unit_at(data, unit))
            values = [T.bind(number(_byte(word, at)) * scale) for at in range(QUAD)]
            for pair in range(QUAD // 2):
                body(unit * (QUAD // 2) + pair, values[2 * pair], values[2 * pair + 1])


def _byte(word: Expr, at: int) -> Expr:
    return T.bitwise_and(T.shift_right(word, splat(T.uint32(8 * at), LANES)), splat(T.uint32(0xFF), LANES))


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
