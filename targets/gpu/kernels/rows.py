"""Kernels that treat rows on their own: take, rms_norm, rope_table, rope, add, swiglu, concat, scale_rows.

Their specs are those of dsv3c.targets.calls. Elementwise ones have a thread an element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dsv3c.targets import tir as T
from dsv3c.targets.calls.elementwise import Add, Concat, ScaleRows, Swiglu
from dsv3c.targets.calls.embedding import Take
from dsv3c.targets.calls.norm import RmsNorm
from dsv3c.targets.calls.operands import Operand, Rows, view_of
from dsv3c.targets.calls.rope import Rope, RopeTable
from dsv3c.targets.gpu.kernels.frame import (
    THREADS,
    Buffer,
    Buffers,
    Expr,
    Extent,
    Variant,
    add,
    f32,
    local,
    prim_func,
    row_count,
    spread,
    store,
)
from dsv3c.targets.gpu.kernels.functions import cos_sin, silu
from dsv3c.targets.gpu.kernels.subgroups import Exchange, Runs, forms
from dsv3c.targets.gpu.kernels.words import load


def elementwise(
    operands: Sequence[Operand], rows: Rows, d: int, body: Callable[[Buffers, Expr, Expr], None]
) -> tuple[Variant, ...]:
    """body(buffers, row, column) for each element of M rows of d.

    Rows have an axis of the grid to themselves: devices need not run more than 65,535 workgroups along one.
    """
    grid = (Extent(-(-d // THREADS)), Extent(1, rows))

    def emit(buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        column = T.bind(groups[0] * THREADS + thread)
        with T.If(T.And(column < d, groups[1] < row_count(buffers, rows))), T.Then():
            body(buffers, groups[1], column)

    return (Variant(grid, lambda: prim_func(operands, grid, emit), rows),)


def take(spec: Take, operands: Sequence[Operand], held: range | None = None) -> tuple[Variant, ...]:
    """held: the rows that the table has, if not all; rows of other ids are left as they are."""

    def body(buffers: Buffers, row: Expr, column: Expr) -> None:
        token = T.bind(buffers["ids"][row])
        if held is None:
            widen(buffers, row, column, token)
            return
        with T.If(T.And(token >= held.start, token < held.stop)), T.Then():
            widen(buffers, row, column, T.bind(token - held.start))

    def widen(buffers: Buffers, row: Expr, column: Expr, token: Expr) -> None:
        table = buffers["table.data" if spec.element == "i8" else "table"]
        value = load(table, T.bind(token * spec.d + column), spec.element)
        scaled = value * buffers["table.scale"][token] if spec.element == "i8" else value
        store(buffers["y"], row * spec.d + column, scaled)

    return elementwise(operands, spec.rows, spec.d, body)


def inverse_rms(x: Buffer, start: Expr, d: int, eps: float, thread: Expr, runs: Runs, total: Buffer) -> Expr:
    """1 / sqrt(mean of squares + eps) of x[start : start + d]; a reduction of `runs`. total: local [1]."""
    store(total, 0, f32(0))

    def square(at: Expr) -> None:
        value = T.bind(x[start + at])
        store(total, 0, total[0] + value * value)

    spread(d, thread, square)
    squares = runs.reduced(total[0], add)
    return T.bind(f32(1) / T.sqrt(squares * f32(1 / d) + f32(eps)))


def rms_norm(spec: RmsNorm, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    """A workgroup a row."""
    grid, view = (Extent(1, spec.rows),), view_of(spec.view, 1, spec.d)

    def emit(exchange: Exchange, buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        x, row = buffers["x"], groups[0]
        start = T.bind(view.start(row))
        scale = inverse_rms(x, start, spec.d, spec.eps, thread, Runs(exchange, thread), local(1))

        def column(at: Expr) -> None:
            store(buffers["y"], row * spec.d + at, x[start + at] * scale * buffers["weight"][at])

        spread(spec.d, thread, column)

    return forms(operands, grid, spec.rows, emit)


def rope_table(spec: RopeTable, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    half = spec.d // 2

    def body(buffers: Buffers, row: Expr, j: Expr) -> None:
        cos, sin = cos_sin(T.bind(T.Cast("float32", buffers["positions"][row]) * buffers["inv_freq"][j]))
        at = T.bind(row * spec.d + j)
        store(buffers["y"], at, cos * f32(spec.scale))
        store(buffers["y"], at + half, sin * f32(spec.scale))

    return elementwise(operands, spec.rows, half, body)


def rotated(x: Callable[[Expr], Expr], table: Buffer, angles: Expr, d: int, interleave: bool, j: Expr) -> Any:
    """The pair (j, j + d/2) of the rotated x(0) … x(d - 1); `angles`: start of the token's row of the table."""
    half = d // 2
    first = T.bind(x(j * 2 if interleave else j))
    second = T.bind(x(j * 2 + 1 if interleave else j + half))
    cos, sin = T.bind(table[angles + j]), T.bind(table[angles + half + j])
    return T.bind(first * cos - second * sin), T.bind(second * cos + first * sin)


def rope(spec: Rope, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    """A thread a pair, or a column that stays as it is."""
    half, width = spec.d // 2, spec.d + spec.rest
    view = view_of(spec.view, spec.heads, width)

    def body(buffers: Buffers, row: Expr, item: Expr) -> None:
        head = T.bind(T.floordiv(item, half + spec.rest))
        j = T.bind(item - head * (half + spec.rest))
        start, out = T.bind(view.start(row, head)), T.bind((row * spec.heads + head) * width)
        if not spec.rest:
            turn(buffers, row, start, out, j)
            return
        with T.If(j < half):
            with T.Then():
                turn(buffers, row, start, out, j)
            with T.Else():
                store(buffers["y"], out + j + half, buffers["x"][start + j + half])

    def turn(buffers: Buffers, row: Expr, start: Expr, out: Expr, j: Expr) -> None:
        x, table = buffers["x"], buffers["table"]
        pair = rotated(lambda i: x[start + i], table, row * spec.d, spec.d, spec.interleave, j)
        store(buffers["y"], out + j, pair[0])
        store(buffers["y"], out + j + half, pair[1])

    return elementwise(operands, spec.rows, spec.heads * (half + spec.rest), body)


def add_rows(spec: Add, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    def body(buffers: Buffers, row: Expr, column: Expr) -> None:
        at = T.bind(row * spec.d + column)
        store(buffers["y"], at, buffers["a"][at] + buffers["b"][at])

    return elementwise(operands, spec.rows, spec.d, body)


def scale_rows(spec: ScaleRows, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    view = view_of(spec.view, 1, spec.d)

    def body(buffers: Buffers, row: Expr, column: Expr) -> None:
        block = T.bind(T.min(T.floordiv(buffers["positions"][row], spec.block), spec.blocks - 1))
        scaled = buffers["x"][view.start(row) + column] * buffers["factors"][block]
        store(buffers["y"], row * spec.d + column, scaled)

    return elementwise(operands, spec.rows, spec.d, body)


def swiglu(spec: Swiglu, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    def body(buffers: Buffers, row: Expr, column: Expr) -> None:
        gate = T.bind(row * (2 * spec.d) + column)
        store(buffers["y"], row * spec.d + column, silu(buffers["x"][gate]) * buffers["x"][gate + spec.d])

    return elementwise(operands, spec.rows, spec.d, body)


def concat(spec: Concat, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    width = spec.d1 + spec.d2

    def body(buffers: Buffers, row: Expr, column: Expr) -> None:
        with T.If(column < spec.d1):
            with T.Then():
                store(buffers["y"], row * width + column, buffers["a"][row * spec.d1 + column])
            with T.Else():
                store(buffers["y"], row * width + column, buffers["b"][row * spec.d2 + (column - spec.d1)])

    return elementwise(operands, spec.rows, width, body)
