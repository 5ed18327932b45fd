"""rms_norm: y[m] = x[m] * rsqrt(mean(x[m]^2) + eps) * weight."""

from __future__ import annotations

from typing import Any

from dsv3c.targets import tir as T
from dsv3c.targets.calls.norm import RmsNorm, rms_norm_operands
from dsv3c.targets.calls.operands import view_of
from dsv3c.targets.cpu.intrinsics import splat
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.frame import Buffer, PrimFunc, prim_func, rows_loop
from dsv3c.targets.cpu.kernels.vector import Reduction, add, columns, f32, load, store

Expr = Any


def inverse_rms(x: Buffer, start: Expr, d: int, eps: float) -> Expr:
    """1 / sqrt(mean of squares + eps) of x[start : start + d]."""
    squares = Reduction(add, 0.0)

    def square(at: Expr, lanes: int) -> None:
        value = T.bind(load(x, start + at, lanes))
        squares.update(value * value, lanes)

    columns(d, square)
    return T.bind(f32(1) / T.sqrt(squares.result() * f32(1 / d) + f32(eps)))


def build(spec: RmsNorm, level: IsaLevel) -> PrimFunc:
    view = view_of(spec.view, 1, spec.d)

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

    return prim_func(rms_norm_operands(spec), body)
