"""Packed weights of any format as float32, block by block: for products with rows that are not worth rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsv3c.compiler.formats.quant import QuantSpec
from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.targets import tir as T
from dsv3c.targets.cpu.intrinsics import bf16_pair_to_f32, splat
from dsv3c.targets.cpu.kernels.dot import Weight
from dsv3c.targets.cpu.kernels.vector import f32, load, load_f32

Expr = Any

WORD_COLUMNS = 4  # codes of one row in a 32-bit word


def decoded_columns(spec: QuantSpec, k: int) -> int:
    """Columns of a decoded block: K, and what its format pads it to, and one if they are odd."""
    padded = spec.padded_k(k)
    return padded + padded % 2


def decode_block(w: Weight, block: Expr, body: Callable[[Expr, Expr, Expr], None]) -> None:
    """body(i, column 2i, column 2i + 1) for all pairs of columns of a block, each float32 of its sixteen rows."""
    data = w.start(block)
    if w.spec.is_float:
        _decode_floats(w, data, body)
        return
    columns = WORD_COLUMNS * 8 // w.spec.bits  # columns of K in one 64-byte word of the block
    words = w.spec.padded_k(w.k) // columns // w.spec.scale_groups(w.k)
    scales = w.scale_start(block)
    with T.serial(0, w.spec.scale_groups(w.k)) as g:
        at = T.bind(scales + T.Cast("int64", g) * LANES)
        scale = T.bind(load_f32(w.scale, at, LANES, w.spec.scale_dtype))
        zero = f32(w.spec.zero_point, LANES)
        if w.zero is not None:
            zero = T.bind(T.Cast(f"float32x{LANES}", load(w.zero, at, LANES)))
        with T.serial(0, words) as i:
            word = T.bind(g * words + i)
            offset = data + T.Cast("int64", word) * (LANES * WORD_COLUMNS)
            codes = T.bind(T.reinterpret(f"uint32x{LANES}", load(w.data, offset, WORD_COLUMNS * LANES)))
            values = [T.bind((_column(codes, column, w.spec.bits) - zero) * scale) for column in range(columns)]
            for pair in range(columns // 2):
                body(word * (columns // 2) + pair, values[2 * pair], values[2 * pair + 1])


def _decode_floats(w: Weight, data: Expr, body: Callable[[Expr, Expr, Expr], None]) -> None:
    def column(at: Expr) -> Expr:
        return T.bind(load_f32(w.data, data + T.Cast("int64", at) * LANES, LANES, w.spec.element))

    with T.serial(0, w.spec.padded_k(w.k) // 2) as i:
        if w.spec.element == "bf16":
            pairs = load(w.data, data + T.Cast("int64", i) * (2 * LANES), 2 * LANES)
            low, high = bf16_pair_to_f32(T.bind(T.reinterpret(f"uint32x{LANES}", pairs)), LANES)
        else:
            low, high = column(i * 2), column(i * 2 + 1)
        body(i, low, high)
    if w.spec.padded_k(w.k) % 2:
        body(T.int32(w.k // 2), column(T.int32(w.k - 1)), f32(0, LANES))


def _column(codes: Expr, column: int, bits: int) -> Expr:
    """Codes of one column of K as float32. int4 words hold columns 0..3 in low nibbles, 4..7 in high ones."""
    shift = column % WORD_COLUMNS * 8 + column // WORD_COLUMNS * 4
    mask = (1 << bits) - 1
    code = T.bitwise_and(T.shift_right(codes, splat(T.uint32(shift), LANES)), splat(T.uint32(mask), LANES))
    return T.Cast(f"float32x{LANES}", T.reinterpret(f"int32x{LANES}", code))
