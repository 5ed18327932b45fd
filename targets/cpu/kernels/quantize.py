"""quantize_rows: float rows to int8 codes, a scale and a code sum per group (see formats.activations)."""

from __future__ import annotations

from functools import reduce
from typing import Any

from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.targets import tir as T
from dsv3c.targets.calls.operands import CONTROL, view_of
from dsv3c.targets.calls.quantize import QuantizeRows
from dsv3c.targets.cpu.intrinsics import splat, typed
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.dot import Activation
from dsv3c.targets.cpu.kernels.frame import Buffer, Operand, PrimFunc, local, prim_func, rows_loop, stack
from dsv3c.targets.cpu.kernels.vector import Reduction, across, add, columns, f32, horizontal, load, store

Expr = Any


def operands(spec: QuantizeRows) -> tuple[Operand, ...]:
    scales = spec.rows.maximum * spec.heads * spec.groups
    return (
        CONTROL,
        Operand("x", "f32", spec.rows.maximum * view_of(spec.view, spec.heads, spec.k).row_stride),
        Operand("y.data", "i8", scales * spec.group),
        Operand("y.scale", "f32", scales),
        Operand("y.sum", "i32", scales),
    )


def build(spec: QuantizeRows, level: IsaLevel) -> PrimFunc:
    whole = spec.k // spec.group  # groups without padding

    def body(buffers: dict[str, Buffer]) -> None:
        def row(m: Expr) -> None:
            with T.serial(0, spec.heads) as head:
                start = T.bind(view_of(spec.view, spec.heads, spec.k).start(m, head))
                first = T.bind((m * spec.heads + head) * spec.groups)
                with T.serial(0, whole) as g:
                    _group(buffers, start + g * spec.group, first + g, spec.group, spec.group)
                for g in range(whole, spec.groups):
                    _group(buffers, start + g * spec.group, first + g, max(0, spec.k - g * spec.group), spec.group)

        rows_loop(buffers["control"], spec.rows, spec.heads * spec.k, row)

    return prim_func(operands(spec), body)


def _group(buffers: dict[str, Buffer], start: Expr, index: Expr, width: int, group: int) -> None:
    """Round x[start : start + width] into group `index`, zeros up to `group`."""
    x, data = buffers["x"], buffers["y.data"]
    largest = Reduction(T.max, 0.0)
    columns(width, lambda at, lanes: largest.update(T.fabs(load(x, start + at, lanes)), lanes))
    amax = largest.result()
    inverse = T.bind(f32(127) / T.Select(amax > f32(0), amax, f32(1)))
    total = local("i32", 1)
    store(total, 0, T.int32(0), 1)

    def encode(at: Expr, lanes: int) -> None:
        rounded = T.nearbyint(load(x, start + at, lanes) * splat(inverse, lanes))
        codes = T.bind(T.Cast(typed("int32", lanes), rounded))
        store(total, 0, total[0] + horizontal(codes, lanes, add), 1)
        store(data, index * group + at, T.Cast(typed("int8", lanes), codes), lanes)

    columns(width, encode)
    columns(group, lambda at, lanes: store(data, index * group + at, splat(T.int8(0), lanes), lanes), start=width)
    store(buffers["y.scale"], index, amax * f32(1 / 127), 1)
    store(buffers["y.sum"], index, total[0], 1)


def round_sixteen(x: Buffer, start: Expr, out: Activation, first: Expr, group: int) -> None:
    """Round sixteen whole groups of x, one behind the other from `start` on, into groups `first`, … of q8 rows.

    As many as a vector has lanes are reduced together, with half as many steps as numbers. group: a multiple of 16.
    """
    parts = range(0, group, LANES)
    largest, totals = stack("f32", LANES, LANES), stack("i32", LANES, LANES)
    with T.serial(0, LANES) as g:
        at = T.bind(start + g * group)
        sizes = [T.bind(T.fabs(load(x, at + part, LANES))) for part in parts]
        store(largest, g, reduce(T.max, sizes), 1)
    amax = T.bind(across([T.bind(largest[g]) for g in range(LANES)], T.max))
    inverses = local("f32", LANES)
    store(inverses, 0, f32(127, LANES) / T.Select(amax > f32(0, LANES), amax, f32(1, LANES)), LANES)
    store(out.scale, first, amax * f32(1 / 127, LANES), LANES)
    with T.serial(0, LANES) as g:
        at, to = T.bind(start + g * group), T.bind((first + g) * group)
        inverse = T.bind(splat(inverses[g], LANES))
        codes = [T.bind(T.Cast("int32x16", T.nearbyint(load(x, at + part, LANES) * inverse))) for part in parts]
        for part, code in zip(parts, codes, strict=True):
            store(out.data, to + part, T.Cast("int8x16", code), LANES)
        store(totals, g, reduce(add, codes), 1)
    store(out.sum, first, across([T.bind(totals[g]) for g in range(LANES)], add), LANES)
