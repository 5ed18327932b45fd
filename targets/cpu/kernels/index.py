"""index_write: an indexer's keys, which are its queries' one key head. A row of their cache is float32 or bfloat16."""

from __future__ import annotations

from typing import Any

from dsv3c.targets import tir as T
from dsv3c.targets.calls.operands import view_of
from dsv3c.targets.calls.sparse import IndexWrite, index_write_operands
from dsv3c.targets.cpu.intrinsics import splat
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.cache import cache_row
from dsv3c.targets.cpu.kernels.frame import Buffer, PrimFunc, prim_func, rows_loop, stack
from dsv3c.targets.cpu.kernels.rope import rotate
from dsv3c.targets.cpu.kernels.vector import Reduction, add, columns, f32, load, store, store_f32

Expr = Any


def build(spec: IndexWrite, level: IsaLevel) -> PrimFunc:
    paging = spec.paging
    width, element = paging.rank, paging.element
    view = view_of(spec.view, 1, width)

    def body(buffers: dict[str, Buffer]) -> None:
        k, cache, weight, bias = (buffers[role] for role in ("k", "cache", "weight", "bias"))

        def row(t: Expr) -> None:
            start = T.bind(view.start(t))
            out = cache_row(paging, buffers["page_table"], buffers["sequence"][t], buffers["positions"][t])
            mean = T.bind(_mean(width, lambda at, lanes: load(k, start + at, lanes)))
            variance = _mean(width, lambda at, lanes: _square(load(k, start + at, lanes) - splat(mean, lanes)))
            scale = T.bind(f32(1) / T.sqrt(variance + f32(spec.eps)))

            def normed(at: Expr, lanes: int) -> Expr:
                centred = (load(k, start + at, lanes) - splat(mean, lanes)) * splat(scale, lanes)
                return centred * load(weight, at, lanes) + load(bias, at, lanes)

            key = stack("f32", 1, width)
            columns(width, lambda at, lanes: store(key, at, normed(at, lanes), lanes))

            def write(at: Expr, value: Expr, lanes: int) -> None:
                store_f32(cache, out + at, value, lanes, element)

            rotate(key, T.int32(0), buffers["table"], t * spec.rotated, spec.rotated, spec.interleave, write)
            columns(width, lambda at, lanes: write(at, load(key, at, lanes), lanes), spec.rotated)

        rows_loop(buffers["control"], spec.rows, 4 * width, row)

    return prim_func(index_write_operands(spec), body)


def _square(x: Expr) -> Expr:
    x = T.bind(x)
    return x * x


def _mean(width: int, numbers: Any) -> Expr:
    total = Reduction(add, 0.0)
    columns(width, lambda at, lanes: total.update(T.bind(numbers(at, lanes)), lanes))
    return total.result() * f32(1 / width)
