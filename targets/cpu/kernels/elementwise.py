"""add, swiglu, concat and scale_rows over rows."""

from __future__ import annotations

from typing import Any

from dsv3c.targets import tir as T
from dsv3c.targets.calls.elementwise import (
    Add,
    Concat,
    ScaleRows,
    Swiglu,
    add_operands,
    concat_operands,
    scale_rows_operands,
    swiglu_operands,
)
from dsv3c.targets.calls.operands import view_of
from dsv3c.targets.cpu.intrinsics import splat
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.frame import Buffer, PrimFunc, prim_func, rows_loop
from dsv3c.targets.cpu.kernels.vector import columns, load, silu, store

Expr = Any


def build_add(spec: Add, level: IsaLevel) -> PrimFunc:
    def body(buffers: dict[str, Buffer]) -> None:
        a, b, y = buffers["a"], buffers["b"], buffers["y"]

        def row(m: Expr) -> None:
            def column(at: Expr, lanes: int) -> None:
                i = m * spec.d + at
                store(y, i, load(a, i, lanes) + load(b, i, lanes), lanes)

            columns(spec.d, column)

        rows_loop(buffers["control"], spec.rows, spec.d, row)

    return prim_func(add_operands(spec), body)


def build_swiglu(spec: Swiglu, level: IsaLevel) -> PrimFunc:
    def body(buffers: dict[str, Buffer]) -> None:
        x, y = buffers["x"], buffers["y"]

        def row(m: Expr) -> None:
            def column(at: Expr, lanes: int) -> None:
                gate = load(x, m * (2 * spec.d) + at, lanes)
                up = load(x, m * (2 * spec.d) + spec.d + at, lanes)
                store(y, m * spec.d + at, silu(gate, lanes) * up, lanes)

            columns(spec.d, column)

        rows_loop(buffers["control"], spec.rows, 4 * spec.d, row)

    return prim_func(swiglu_operands(spec), body)


def build_concat(spec: Concat, level: IsaLevel) -> PrimFunc:
    width = spec.d1 + spec.d2

    def body(buffers: dict[str, Buffer]) -> None:
        def copy(role: str, d: int, offset: int, m: Expr) -> None:
            def column(at: Expr, lanes: int) -> None:
                store(buffers["y"], m * width + offset + at, load(buffers[role], m * d + at, lanes), lanes)

            columns(d, column)

        def row(m: Expr) -> None:
            copy("a", spec.d1, 0, m)
            copy("b", spec.d2, spec.d1, m)

        rows_loop(buffers["control"], spec.rows, width, row)

    return prim_func(concat_operands(spec), body)


def build_scale_rows(spec: ScaleRows, level: IsaLevel) -> PrimFunc:
    view = view_of(spec.view, 1, spec.d)

    def body(buffers: dict[str, Buffer]) -> None:
        x, y = buffers["x"], buffers["y"]

        def row(m: Expr) -> None:
            start = T.bind(view.start(m))
            block = T.min(T.floordiv(buffers["positions"][m], spec.block), spec.blocks - 1)
            factor = T.bind(buffers["factors"][block])

            def column(at: Expr, lanes: int) -> None:
                store(y, m * spec.d + at, load(x, start + at, lanes) * splat(factor, lanes), lanes)

            columns(spec.d, column)

        rows_loop(buffers["control"], spec.rows, spec.d, row)

    return prim_func(scale_rows_operands(spec), body)
