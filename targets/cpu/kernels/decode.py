"""Products of float32 rows with packed weights of any format: integer weights are decoded to float32 in registers.

For rows that are not worth rounding (the latent cache), each decoded weight serves a tile of rows.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from dsv3c.compiler.layouts import LANES
from dsv3c.targets.cpu.intrinsics import splat
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.dot import Activation, Tile, Weight, dot_tile
from dsv3c.targets.cpu.kernels.frame import local
from dsv3c.targets.cpu.kernels.vector import f32, load, load_f32, store

Expr = Any

WORD_COLUMNS = 4  # codes of one row in a 32-bit word


def row_tile(level: IsaLevel) -> int:
    """Rows that share a decoded weight, as registers allow."""
    return 8 if level.lanes == LANES else 4


def decoded_tile(level: IsaLevel, w: Weight, x: Activation, block: Expr, rows: list[Expr]) -> Tile:
    """Emit weight `block` times float32 `rows` of x. Integer formats read x up to the padded K: zeros there."""
    if w.spec.is_float:
        return dot_tile(level, w, x, [block], [(row, 0) for row in rows])
    lanes = level.lanes
    sums = [local("f32", LANES) for _ in rows]
    starts = [T.bind(x.view.start(row)) for row in rows]
    columns = WORD_COLUMNS * 8 // w.spec.bits  # columns of K in one 64-byte word of the block
    words = w.spec.padded_k(w.k) // columns // w.spec.scale_groups(w.k)
    data, scales = w.start(block), w.scale_start(block)
    for part in range(0, LANES, lanes):
        for buffer in sums:
            store(buffer, part, f32(0, lanes), lanes)
    with T.serial(0, w.spec.scale_groups(w.k)) as g:
        for part in range(0, LANES, lanes):
            at = T.bind(scales + T.Cast("int64", g) * LANES + part)
            scale = T.bind(load_f32(w.scale, at, lanes, w.spec.scale_dtype))
            zero = f32(w.spec.zero_point, lanes)
            if w.zero is not None:
                zero = T.bind(T.Cast(f"float32x{lanes}", load(w.zero, at, lanes)))
            with T.serial(0, words) as i:
                word = T.bind(g * words + i)
                offset = data + T.Cast("int64", word) * (LANES * WORD_COLUMNS) + part * WORD_COLUMNS
                codes = T.bind(T.reinterpret(f"uint32x{lanes}", load(w.data, offset, WORD_COLUMNS * lanes)))
                for column in range(columns):
                    weight = T.bind((_column(codes, column, w.spec.bits, lanes) - zero) * scale)
                    for buffer, start in zip(sums, starts, strict=True):
                        value = T.broadcast(x.data[start + word * columns + column], lanes)
                        store(buffer, part, weight * value + load(buffer, part, lanes), lanes)
    return Tile([sums], lanes)


def _column(codes: Expr, column: int, bits: int, lanes: int) -> Expr:
    """Codes of one column of K as float32. int4 words hold columns 0..3 in low nibbles, 4..7 in high ones."""
    shift = column % WORD_COLUMNS * 8 + column // WORD_COLUMNS * 4
    mask = (1 << bits) - 1
    code = T.bitwise_and(T.shift_right(codes, splat(T.uint32(shift), lanes)), splat(T.uint32(mask), lanes))
    return T.Cast(f"float32x{lanes}", T.reinterpret(f"int32x{lanes}", code))
