"""The paged latent cache: where a token's row lies, and mla_write, which fills it.

A cache row is the normed latent [rank] then the rotated shared key [d], float32 or bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from dsv3c.targets.cpu.intrinsics import splat
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.frame import CONTROL, Buffer, Operand, PrimFunc, Rows, View, prim_func, rows_loop
from dsv3c.targets.cpu.kernels.norm import inverse_rms
from dsv3c.targets.cpu.kernels.rope import rotate
from dsv3c.targets.cpu.kernels.vector import columns, load, store_f32

Expr = Any


@dataclass(frozen=True)
class Paging:
    """page_table i32 [sequences, pages] of pages of `page_size` slots; cache rows of rank + d elements."""

    sequences: int
    pages: int
    page_size: int
    rank: int
    d: int
    element: str  # "f32" or "bf16"

    @property
    def width(self) -> int:
        return self.rank + self.d

    def row(self, page_table: Buffer, sequence: Expr, position: Expr) -> Expr:
        """64-bit offset in the cache of the row of `position`."""
        page = page_table[sequence * self.pages + T.floordiv(position, self.page_size)]
        slot = T.Cast("int64", page) * self.page_size + T.Cast("int64", T.floormod(position, self.page_size))
        return T.bind(slot * self.width)

    def operands(self, tokens: int) -> tuple[Operand, ...]:
        """The inputs that say where tokens lie."""
        return (
            Operand("positions", "i32", tokens),
            Operand("sequence", "i32", tokens),
            Operand("page_table", "i32", self.sequences * self.pages),
        )


@dataclass(frozen=True)
class MlaWrite:
    """cache row of each token = rms_norm(kv_a[:rank]) * weight | rope(kv_a[rank:]), kv_a f32 through `view` [T, L]."""

    rows: Rows
    paging: Paging
    eps: float
    interleave: bool
    view: View | None = None


def operands(spec: MlaWrite) -> tuple[Operand, ...]:
    paging, m = spec.paging, spec.rows.maximum
    view = spec.view or View(paging.width)
    return (
        CONTROL,
        Operand("cache", paging.element, None),
        Operand("kv_a", "f32", m * view.row_stride),
        Operand("weight", "f32", paging.rank),
        Operand("table", "f32", m * paging.d),
        *paging.operands(m),
    )


def build(spec: MlaWrite, level: IsaLevel) -> PrimFunc:
    paging = spec.paging
    view = spec.view or View(paging.width)

    def body(buffers: dict[str, Buffer]) -> None:
        x, cache, weight = buffers["kv_a"], buffers["cache"], buffers["weight"]

        def row(t: Expr) -> None:
            start = T.bind(view.start(t))
            out = paging.row(buffers["page_table"], buffers["sequence"][t], buffers["positions"][t])
            scale = inverse_rms(x, start, paging.rank, spec.eps)

            def latent(at: Expr, lanes: int) -> None:
                normed = load(x, start + at, lanes) * splat(scale, lanes) * load(weight, at, lanes)
                store_f32(cache, out + at, normed, lanes, paging.element)

            def key(at: Expr, value: Expr, lanes: int) -> None:
                store_f32(cache, out + paging.rank + at, value, lanes, paging.element)

            columns(paging.rank, latent)
            rotate(x, start + paging.rank, buffers["table"], t * paging.d, paging.d, spec.interleave, key)

        rows_loop(buffers["control"], spec.rows, 2 * paging.width, row)

    return prim_func(operands(spec), body)
