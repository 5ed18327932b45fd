"""The paged latent cache: where a token's row lies, and mla_write, which fills it.

A cache row is the normed latent [rank] then the rotated shared key [d], float32, bfloat16 or cache_codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsv3c.targets import tir as T
from dsv3c.targets.calls.cache import MlaWrite, Paging, mla_write_operands
from dsv3c.targets.calls.operands import view_of
from dsv3c.targets.cpu.intrinsics import splat
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels import cache_codes
from dsv3c.targets.cpu.kernels.frame import Buffer, PrimFunc, prim_func, rows_loop
from dsv3c.targets.cpu.kernels.norm import inverse_rms
from dsv3c.targets.cpu.kernels.rope import rotate
from dsv3c.targets.cpu.kernels.vector import Reduction, columns, load, store_f32

Expr = Any
Write = Callable[[Expr, Expr, int], None]  # (column, numbers, lanes)


def cache_row(paging: Paging, page_table: Buffer, sequence: Expr, position: Expr) -> Expr:
    """64-bit offset in the cache of the row of `position`."""
    page = page_table[sequence * paging.pages + T.floordiv(position, paging.page_size)]
    slot = T.Cast("int64", page) * paging.page_size + T.Cast("int64", T.floormod(position, paging.page_size))
    return T.bind(slot * paging.stride)


def build(spec: MlaWrite, level: IsaLevel) -> PrimFunc:
    paging = spec.paging
    view = view_of(spec.view, 1, paging.width)

    def body(buffers: dict[str, Buffer]) -> None:
        x, cache, weight = buffers["kv_a"], buffers["cache"], buffers["weight"]

        def row(t: Expr) -> None:
            start = T.bind(view.start(t))
            out = cache_row(paging, buffers["page_table"], buffers["sequence"][t], buffers["positions"][t])
            scale = inverse_rms(x, start, paging.rank, spec.eps)

            def latent(write: Write) -> None:
                def normed(at: Expr, lanes: int) -> None:
                    write(at, load(x, start + at, lanes) * splat(scale, lanes) * load(weight, at, lanes), lanes)

                columns(paging.rank, normed)

            def key(write: Write) -> None:
                rotate(x, start + paging.rank, buffers["table"], t * paging.d, paging.d, spec.interleave, write)

            for number, part in enumerate((latent, key)):
                put = _write_coded if paging.coded else _write_plain
                put(cache, out, number, paging, part)

        rows_loop(buffers["control"], spec.rows, 2 * paging.width, row)

    return prim_func(mla_write_operands(spec), body)


def _write_plain(cache: Buffer, out: Expr, number: int, paging: Paging, part: Callable[[Write], None]) -> None:
    first = out + cache_codes.parts(paging)[number][1]
    part(lambda at, value, lanes: store_f32(cache, first + at, value, lanes, paging.element))


def _write_coded(cache: Buffer, out: Expr, number: int, paging: Paging, part: Callable[[Write], None]) -> None:
    """Both times that the numbers of a part are wanted, for their scale and to be rounded, they are computed."""
    largest = Reduction(T.max, 0.0)
    part(lambda at, value, lanes: largest.update(T.fabs(value), lanes))
    inverse = cache_codes.put_scale(cache, out, number, paging, largest.result())
    first = out + cache_codes.parts(paging)[number][1]

    def write(at: Expr, value: Expr, lanes: int) -> None:
        cache_codes.store_codes(cache, first + at, value * splat(inverse, lanes), lanes, paging.element)

    part(write)
