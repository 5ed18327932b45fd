"""rms_norm: y[m] = x[m] * rsqrt(mean(x[m]^2) + eps) * weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from dsv3c.targets.cpu.intrinsics import splat
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.frame import CONTROL, Buffer, Operand, PrimFunc, Rows, View, prim_func, rows_loop
from dsv3c.targets.cpu.kernels.vector import Reduction, add, columns, f32, load, store

Expr = Any


@dataclass(frozen=True)
class RmsNorm:
    """x f32 through `view` [M, d], weight f32 [d], y f32 [M, d]."""

    rows: Rows
    d: int
    eps: float
    view: View | None = None


def operands(spec: RmsNorm) -> tuple[Operand, ...]:
    view = spec.view or View(spec.d)
    return (
        CONTROL,
        Operand("x", "f32", spec.rows.maximum * view.row_stride),
        Operand("weight", "f32", spec.d),
        Operand("y", "f32", spec.rows.maximum * spec.d),
    )


def inverse_rms(x: Buffer, start: Expr, d: int, eps: float) -> Expr:
    """1 / sqrt(mean of squares + eps) of x[start : start + d]."""
    squares = Reduction(add, 0.0)

    def square(at: Expr, lanes: int) -> None:
        value = T.bind(load(x, start + at, lanes))
        squares.update(value * value, lanes)

    columns(d, square)
    return T.bind(f32(1) / T.sqrt(squares.result() * f32(1 / d) + f32(eps)))


def build(spec: RmsNorm, level: IsaLevel) -> PrimFunc:
    view = spec.view or View(spec.d)

    def body(buffers: dict[str, Buffer]) -> None:
        x, weight, y = buffers["x"], buffers["weight"], buffers["y"]

        def row(m: Expr) -> None:
            start = T.bind(view.start(m))
            scale = inverse_rms(x, start, spec.d, spec.eps)

            def column(at: Expr, lanes: int) -> None:
                normed = load(x, start + at, lanes) * splat(scale, lanes)
                store(y, m * spec.d + at, normed * load(weight, at, lanes), lanes)

            columns(spec.d, column)

        rows_loop(buffers["control"], spec.rows, spec.d, row)

    return prim_func(operands(spec), body)
