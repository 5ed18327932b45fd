"""rope_table and rope: rotary position embedding (RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

from typing import Any

from dsv3c.targets import tir as T
from dsv3c.targets.calls.operands import view_of
from dsv3c.targets.calls.rope import Rope, RopeTable, rope_operands, rope_table_operands
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.frame import Buffer, PrimFunc, prim_func, rows_loop
from dsv3c.targets.cpu.kernels.vector import columns, f32, load, store

Expr = Any


def build_rope_table(spec: RopeTable, level: IsaLevel) -> PrimFunc:
    half = spec.d // 2

    def body(buffers: dict[str, Buffer]) -> None:
        y = buffers["y"]

        def row(m: Expr) -> None:
            position = T.bind(T.Cast("float32", buffers["positions"][m]))
            with T.serial(0, half) as j:
                angle = T.bind(position * buffers["inv_freq"][j])
                store(y, m * spec.d + j, T.cos(angle) * f32(spec.scale), 1)
                store(y, m * spec.d + half + j, T.sin(angle) * f32(spec.scale), 1)

        rows_loop(buffers["control"], spec.rows, 32 * spec.d, row)

    return prim_func(rope_table_operands(spec), body)


def rotate(x: Buffer, start: Expr, table: Buffer, angles: Expr, d: int, interleave: bool, write: Any) -> None:
    """write(j, value, lanes) for the rotated x[start : start + d]; `angles` is the start of the token's table row."""
    half = d // 2

    def column(at: Expr, lanes: int) -> None:
        if interleave and lanes > 1:
            pairs = T.bind(load(x, start + at * 2, 2 * lanes))
            first = T.bind(T.Shuffle([pairs], list(range(0, 2 * lanes, 2))))
            second = T.bind(T.Shuffle([pairs], list(range(1, 2 * lanes, 2))))
        else:
            step = 2 if interleave else 1
            first = T.bind(load(x, start + at * step, lanes))
            second = T.bind(load(x, start + at * step + (1 if interleave else half), lanes))
        cos = T.bind(load(table, angles + at, lanes))
        sin = T.bind(load(table, angles + half + at, lanes))
        write(at, first * cos - second * sin, lanes)
        write(at + half, second * cos + first * sin, lanes)

    columns(half, column)


def build_rope(spec: Rope, level: IsaLevel) -> PrimFunc:
    width = spec.d + spec.rest

    def body(buffers: dict[str, Buffer]) -> None:
        x, y = buffers["x"], buffers["y"]

        def row(m: Expr) -> None:
            with T.serial(0, spec.heads) as head:
                out = T.bind((m * spec.heads + head) * width)
                start = T.bind(view_of(spec.view, spec.heads, width).start(m, head))
                rotate(
                    x,
                    start,
                    buffers["table"],
                    m * spec.d,
                    spec.d,
                    spec.interleave,
                    lambda at, value, lanes: store(y, out + at, value, lanes),
                )
                columns(width, lambda at, lanes: store(y, out + at, load(x, start + at, lanes), lanes), spec.d)

        rows_loop(buffers["control"], spec.rows, spec.heads * width, row)

    return prim_func(rope_operands(spec), body)
