"""take: rows of a table by index, widened to float32."""

from __future__ import annotations

from typing import Any

from dsv3c.targets import tir as T
from dsv3c.targets.calls.embedding import Take, take_operands
from dsv3c.targets.cpu.intrinsics import splat, typed
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.frame import Buffer, PrimFunc, prim_func, rows_loop
from dsv3c.targets.cpu.kernels.vector import columns, load, load_f32, store

Expr = Any


def build(spec: Take, level: IsaLevel) -> PrimFunc:
    def body(buffers: dict[str, Buffer]) -> None:
        y, ids = buffers["y"], buffers["ids"]

        def row(m: Expr) -> None:
            start = T.bind(T.Cast("int64", ids[m]) * T.int64(spec.d))

            def column(at: Expr, lanes: int) -> None:
                if spec.element != "i8":
                    value = load_f32(buffers["table"], start + at, lanes, spec.element)
                else:
                    codes = T.Cast(typed("float32", lanes), load(buffers["table.data"], start + at, lanes))
                    value = codes * splat(buffers["table.scale"][ids[m]], lanes)
                store(y, m * spec.d + at, value, lanes)

            columns(spec.d, column)

        rows_loop(buffers["control"], spec.rows, spec.d, row)

    return prim_func(take_operands(spec), body)
