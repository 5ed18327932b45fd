"""Queries with their heads in the lanes, so that one number of a key meets those of up to sixteen heads at once."""

from __future__ import annotations

from typing import Any

from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.targets import tir as T
from dsv3c.targets.cpu.intrinsics import f32_to_bf16_pair
from dsv3c.targets.cpu.kernels.frame import Buffer
from dsv3c.targets.cpu.kernels.vector import f32, load, store, transpose

Expr = Any


def load_queries(source: Buffer, starts: list[Expr], n: int, scratch: Buffer, out: Expr) -> None:
    """scratch[out + i*16 + h] = source[starts[h] + i] for i < n, zeros for h that have no start."""
    whole = n // LANES
    if whole:
        with T.serial(0, whole) as step:
            rows = [T.bind(load(source, start + step * LANES, LANES)) for start in starts]
            for i, column in enumerate(transpose(rows)):
                store(scratch, out + (step * LANES + i) * LANES, column, LANES)
    if n % LANES:
        with T.serial(whole * LANES, n) as i:
            store(scratch, out + i * LANES, f32(0, LANES), LANES)
            for h, start in enumerate(starts):
                store(scratch, out + i * LANES + h, source[start + i], 1)


def load_query_pairs(source: Buffer, starts: list[Expr], n: int, scratch: Buffer, out: Expr) -> None:
    """scratch[out + i*16 + h] = the bfloat16 pair (source[starts[h] + 2i], source[starts[h] + 2i + 1]), else the same;
    n is even."""
    even, odd = list(range(0, 2 * LANES, 2)), list(range(1, 2 * LANES, 2))
    whole = n // (2 * LANES)
    if whole:
        with T.serial(0, whole) as step:
            rows = []
            for start in starts:
                halves = [T.bind(load(source, start + step * (2 * LANES) + part, LANES)) for part in (0, LANES)]
                pair = f32_to_bf16_pair(T.bind(T.Shuffle(halves, even)), T.bind(T.Shuffle(halves, odd)), LANES)
                rows.append(T.bind(T.reinterpret("float32x16", pair)))
            for i, column in enumerate(transpose(rows)):
                store(scratch, out + (step * LANES + i) * LANES, column, LANES)
    if n % (2 * LANES):
        with T.serial(whole * LANES, n // 2) as i:
            store(scratch, out + i * LANES, f32(0, LANES), LANES)
            for h, start in enumerate(starts):
                pair = f32_to_bf16_pair(source[start + 2 * i], source[start + 2 * i + 1], 1)
                store(scratch, out + i * LANES + h, T.reinterpret("float32", pair), 1)
