"""mla_absorbed: attention in latent space, where the cache row is both the one key and the one value of all heads.

A token attends to positions 0 … its own. Softmax runs online (Milakov and Gimelshein 2018, arXiv 1805.02867) over
blocks of sixteen slots, the output buffer holding the unnormalised sum. A few heads share each pass over the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from dsv3c.targets.cpu.intrinsics import splat, typed
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.cache import Paging
from dsv3c.targets.cpu.kernels.frame import (
    CONTROL,
    PARALLEL_WORK,
    Buffer,
    Operand,
    PrimFunc,
    Rows,
    local,
    loop,
    prim_func,
)
from dsv3c.targets.cpu.kernels.vector import WIDTH, Reduction, add, columns, exp, f32, horizontal, load, load_f32, store

Expr = Any

BLOCK = 16  # slots of one softmax step; pages hold whole blocks
LOWEST = -1.0e30  # score of a masked slot and running maximum before the first


@dataclass(frozen=True)
class MlaAbsorbed:
    """q_latent f32 [T, heads, rank], q_pe f32 [T, heads, d], cache, … -> y f32 [T, heads, rank]."""

    rows: Rows
    heads: int
    paging: Paging
    scale: float


def operands(spec: MlaAbsorbed) -> tuple[Operand, ...]:
    m, paging = spec.rows.maximum, spec.paging
    return (
        CONTROL,
        Operand("q_latent", "f32", m * spec.heads * paging.rank),
        Operand("q_pe", "f32", m * spec.heads * paging.d),
        Operand("cache", paging.element, None),
        *paging.operands(m),
        Operand("y", "f32", m * spec.heads * paging.rank),
    )


def heads_together(heads: int) -> int:
    """Heads that share a pass: a divisor of `heads`, since y accumulates and no head may be done twice."""
    return next(tile for tile in (4, 3, 2, 1) if heads % tile == 0)


def softmax_step(scores: Expr, last: Expr, before: Expr) -> tuple[Expr, Expr, Expr, Expr]:
    """One step over 16 scaled scores, those past slot `last` masked, with the running maximum `before`.

    Returns (probabilities x16 relative to the new maximum, their sum, the new maximum, the factor that takes sums
    relative to the old maximum to the new one).
    """
    # Masks are arithmetic, 0 up to `last` and -1, -2, … past it: TVM's simplifier chokes on vectors of booleans.
    slots = T.Cast(typed("float32", BLOCK), T.ramp(T.int32(0), 1, BLOCK))
    past = T.bind(T.min(splat(T.Cast("float32", last), BLOCK) - slots, f32(0, BLOCK)))
    masked = T.bind(scores + past * f32(-LOWEST, BLOCK))
    after = T.bind(T.max(before, horizontal(masked, BLOCK, T.max)))
    kept = T.max(past + f32(1, BLOCK), f32(0, BLOCK))
    probabilities = T.bind(exp(masked - splat(after, BLOCK), BLOCK) * kept)
    return probabilities, horizontal(probabilities, BLOCK, add), after, T.bind(exp(before - after, 1))


def build(spec: MlaAbsorbed, level: IsaLevel) -> PrimFunc:
    """Parallel over tokens and head tiles."""
    paging = spec.paging
    tile = heads_together(spec.heads)
    tiles_per_token = spec.heads // tile

    def body(buffers: dict[str, Buffer]) -> None:
        longest = paging.pages * paging.page_size
        parallel = spec.heads * paging.width * longest >= PARALLEL_WORK
        with loop(T.bind(buffers["control"][spec.rows.index] * tiles_per_token), parallel) as item:
            token = T.bind(T.floordiv(item, tiles_per_token))
            _attend(spec, level, buffers, token, T.bind(T.floormod(item, tiles_per_token) * tile), tile)

    return prim_func(operands(spec), body)


def _attend(spec: MlaAbsorbed, level: IsaLevel, buffers: dict[str, Buffer], t: Expr, head: Expr, tile: int) -> None:
    """One token and `tile` heads from `head` on."""
    paging, y = spec.paging, buffers["y"]
    position, sequence = T.bind(buffers["positions"][t]), T.bind(buffers["sequence"][t])
    rows = [T.bind((t * spec.heads + head + h) * paging.rank) for h in range(tile)]
    keys = [T.bind((t * spec.heads + head + h) * paging.d) for h in range(tile)]
    largest, total, factors = (local("f32", tile) for _ in range(3))
    scores = local("f32", tile * BLOCK)
    for h in range(tile):
        store(largest, h, f32(LOWEST), 1)
        store(total, h, f32(0), 1)

        def clear(at: Expr, lanes: int, row: Expr = rows[h]) -> None:
            store(y, row + at, f32(0, lanes), lanes)

        columns(paging.rank, clear)

    with T.serial(0, T.floordiv(position, BLOCK) + 1) as block:
        base = paging.row(buffers["page_table"], sequence, block * BLOCK)
        last = T.bind(T.min(position - block * BLOCK, BLOCK - 1))
        _scores(spec, level, buffers, rows, keys, base, last, scores)
        for h in range(tile):
            scaled = load(scores, h * BLOCK, BLOCK) * f32(spec.scale, BLOCK)
            probabilities, block_total, after, factor = softmax_step(scaled, last, T.bind(largest[h]))
            store(scores, h * BLOCK, probabilities, BLOCK)
            store(factors, h, factor, 1)
            store(total, h, total[h] * factor + block_total, 1)
            store(largest, h, after, 1)
        _add_values(spec, buffers, rows, base, last, scores, factors)

    for h in range(tile):
        inverse = T.bind(f32(1) / total[h])

        def normalise(at: Expr, lanes: int, row: Expr = rows[h], inverse: Expr = inverse) -> None:
            store(y, row + at, load(y, row + at, lanes) * splat(inverse, lanes), lanes)

        columns(paging.rank, normalise)


def _slot(base: Expr, slot: Expr, last: Expr, width: int) -> Expr:
    """Row offset of a slot; past the context the last valid row stands in, whatever the page holds there."""
    return T.bind(base + T.Cast("int64", T.min(slot, last)) * width)


def _scores(
    spec: MlaAbsorbed,
    level: IsaLevel,
    buffers: dict[str, Buffer],
    rows: list[Expr],
    keys: list[Expr],
    base: Expr,
    last: Expr,
    scores: Buffer,
) -> None:
    """scores[h, slot] = q_latent . latent + q_pe . key of the sixteen slots from `base` on."""
    paging, cache = spec.paging, buffers["cache"]
    together = level.lanes // 8  # slots at a time: as many sums as registers hold

    def add_products(sums: list[list[Reduction]], slots: list[Expr], query: Buffer, starts: list[Expr], n: int) -> None:
        def column(at: Expr, lanes: int) -> None:
            values = [T.bind(load_f32(cache, slot + at, lanes, paging.element)) for slot in slots]
            for h, start in enumerate(starts):
                q = T.bind(load(query, start + at, lanes))
                for i, value in enumerate(values):
                    sums[h][i].update(q * value, lanes)

        columns(n, column)

    with T.serial(0, BLOCK // together) as step:
        slots = [_slot(base, step * together + i, last, paging.width) for i in range(together)]
        sums = [[Reduction(add, 0.0) for _ in slots] for _ in rows]
        add_products(sums, slots, buffers["q_latent"], rows, paging.rank)
        add_products(sums, [slot + paging.rank for slot in slots], buffers["q_pe"], keys, paging.d)
        for h, of_head in enumerate(sums):
            for i, total in enumerate(of_head):
                store(scores, h * BLOCK + step * together + i, total.result(), 1)


def _add_values(
    spec: MlaAbsorbed,
    buffers: dict[str, Buffer],
    rows: list[Expr],
    base: Expr,
    last: Expr,
    probabilities: Buffer,
    factors: Buffer,
) -> None:
    """y = y * factor + sum over the block's slots of probability * latent, for each head."""
    paging, cache, y = spec.paging, buffers["cache"], buffers["y"]
    slots = [_slot(base, slot, last, paging.width) for slot in range(BLOCK)]

    def column(at: Expr, lanes: int) -> None:
        # Two chains of sums a head, for even and odd slots: one would wait for the latency of FMA.
        sums = [(local("f32", WIDTH), local("f32", WIDTH)) for _ in rows]
        for h, row in enumerate(rows):
            store(sums[h][0], 0, load(y, row + at, lanes) * splat(factors[h], lanes), lanes)
            store(sums[h][1], 0, f32(0, lanes), lanes)
        for i, slot in enumerate(slots):
            value = T.bind(load_f32(cache, slot + at, lanes, paging.element))
            for h, chains in enumerate(sums):
                weight, total = splat(probabilities[h * BLOCK + i], lanes), chains[i % 2]
                store(total, 0, value * weight + load(total, 0, lanes), lanes)
        for h, row in enumerate(rows):
            store(y, row + at, load(sums[h][0], 0, lanes) + load(sums[h][1], 0, lanes), lanes)

    columns(paging.rank, column)
