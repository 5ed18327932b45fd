"""take: rows of a table by index, widened to float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from dsv3c.targets.cpu.intrinsics import splat, typed
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.frame import CONTROL, Buffer, Operand, PrimFunc, Rows, prim_func, rows_loop
from dsv3c.targets.cpu.kernels.vector import columns, load, load_f32, store

Expr = Any


@dataclass(frozen=True)
class Take:
    """table [v, d] f32, f16, bf16, or i8 with scale f32 [v]; ids i32 [M]; y f32 [M, d]."""

    rows: Rows
    v: int
    d: int
    element: str = "f32"


def operands(spec: Take) -> tuple[Operand, ...]:
    size = spec.v * spec.d
    table = [Operand("table", spec.element, size)]
    if spec.element == "i8":
        table = [Operand("table.data", "i8", size), Operand("table.scale", "f32", spec.v)]
    ids = Operand("ids", "i32", spec.rows.maximum)
    return (CONTROL, *table, ids, Operand("y", "f32", spec.rows.maximum * spec.d))


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

    return prim_func(operands(spec), body)
