"""mla_materialized: attention on keys and values rebuilt from the latent cache, for many tokens at once.

A head goes over its sequence's context in blocks of sixteen slots. It rebuilds the block's keys (transposed: slots in
the lanes) and values once, in its own slice of the scratch operand, then lets every token of the sequence see them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from dsv3c.compiler.layouts import LANES, padded_rows
from dsv3c.compiler.quant import QuantSpec
from dsv3c.targets.cpu.intrinsics import splat
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.cache import Paging
from dsv3c.targets.cpu.kernels.decode import decoded_tile, row_tile
from dsv3c.targets.cpu.kernels.dot import Activation, Weight
from dsv3c.targets.cpu.kernels.frame import (
    CONTROL,
    PARALLEL_WORK,
    Buffer,
    Operand,
    PrimFunc,
    Rows,
    View,
    local,
    loop,
    prim_func,
    weight_operands,
)
from dsv3c.targets.cpu.kernels.softmax import BLOCK, LOWEST, softmax_step
from dsv3c.targets.cpu.kernels.vector import WIDTH, columns, f32, load, load_f32, store

Expr = Any

TOKENS = 8  # tokens that share a pass over a block's keys and values


@dataclass(frozen=True)
class MlaMaterialized:
    """q_nope f32 through `view` [T, heads, nope], q_pe f32 [T, heads, d], cache, w_uk packed [heads, nope, rank], w_uv
    packed [heads, v, rank], … -> y f32 [T, heads, v]."""

    rows: Rows
    heads: int
    nope: int
    v: int
    paging: Paging
    scale: float
    weight: QuantSpec
    view: View | None = None


@dataclass(frozen=True)
class _Scratch:
    """Offsets of one head's slice of the scratch operand, in float32 elements; every row is whole vectors."""

    latent: Expr  # [BLOCK, latent_stride]
    keys: Expr  # [nope + d, BLOCK]
    values: Expr  # [BLOCK, value_stride]
    turn: Expr  # [BLOCK, LANES]: keys of one weight block before they are transposed
    largest: Expr  # [T]
    total: Expr  # [T]
    latent_stride: int
    value_stride: int
    size: int

    @classmethod
    def of(cls, spec: MlaMaterialized, head: Expr) -> _Scratch:
        latent = padded_rows(spec.weight.padded_k(spec.paging.rank))
        value, tokens = padded_rows(spec.v), padded_rows(spec.rows.maximum)
        sizes = (BLOCK * latent, (spec.nope + spec.paging.d) * BLOCK, BLOCK * value, BLOCK * LANES, tokens, tokens)
        size = sum(sizes)
        at = [head * size + sum(sizes[:i]) for i in range(len(sizes))]
        return cls(at[0], at[1], at[2], at[3], at[4], at[5], latent, value, size)


@dataclass(frozen=True)
class _Head:
    """What the emission of one head needs."""

    spec: MlaMaterialized
    level: IsaLevel
    buffers: dict[str, Buffer]
    index: Expr
    at: _Scratch

    @property
    def scratch(self) -> Buffer:
        return self.buffers["scratch"]

    def out(self, token: Expr) -> Expr:
        return (token * self.spec.heads + self.index) * self.spec.v


def _view(spec: MlaMaterialized) -> View:
    return spec.view or View(spec.heads * spec.nope, head_stride=spec.nope)


def operands(spec: MlaMaterialized) -> tuple[Operand, ...]:
    m, paging = spec.rows.maximum, spec.paging
    return (
        CONTROL,
        Operand("q_nope", "f32", m * _view(spec).row_stride),
        Operand("q_pe", "f32", m * spec.heads * paging.d),
        Operand("cache", paging.element, None),
        *weight_operands("w_uk", spec.weight, (spec.heads,), spec.nope, paging.rank),
        *weight_operands("w_uv", spec.weight, (spec.heads,), spec.v, paging.rank),
        *paging.operands(m),
        Operand("y", "f32", m * spec.heads * spec.v),
        Operand("scratch", "f32", spec.heads * _Scratch.of(spec, 0).size),
    )


def build(spec: MlaMaterialized, level: IsaLevel) -> PrimFunc:
    """Parallel over heads."""

    def body(buffers: dict[str, Buffer]) -> None:
        tokens = T.bind(buffers["control"][spec.rows.index])
        work = spec.heads * BLOCK * spec.paging.rank * (spec.nope + spec.v)
        with loop(spec.heads, work >= PARALLEL_WORK) as index:
            head = _Head(spec, level, buffers, index, _Scratch.of(spec, index))
            with T.serial(0, tokens) as t:
                _start(head, t)
            _runs(head, tokens)
            with T.serial(0, tokens) as t:
                _finish(head, t)

    return prim_func(operands(spec), body)


def _start(head: _Head, t: Expr) -> None:
    store(head.scratch, head.at.largest + t, f32(LOWEST), 1)
    store(head.scratch, head.at.total + t, f32(0), 1)
    out = T.bind(head.out(t))
    columns(head.spec.v, lambda at, lanes: store(head.buffers["y"], out + at, f32(0, lanes), lanes))


def _finish(head: _Head, t: Expr) -> None:
    y, out = head.buffers["y"], T.bind(head.out(t))
    inverse = T.bind(f32(1) / head.scratch[head.at.total + t])

    def normalise(at: Expr, lanes: int) -> None:
        store(y, out + at, load(y, out + at, lanes) * splat(inverse, lanes), lanes)

    columns(head.spec.v, normalise)


def _runs(head: _Head, tokens: Expr) -> None:
    """Each run of tokens of one sequence over that sequence's context."""
    sequence, positions = head.buffers["sequence"], head.buffers["positions"]
    first, end, longest = (local("i32", 1) for _ in range(3))
    store(first, 0, T.int32(0), 1)
    with T.While(first[0] < tokens):
        start = T.bind(first[0])
        store(end, 0, start, 1)
        store(longest, 0, T.int32(0), 1)
        # The index is clamped because both sides of the condition are computed.
        with T.While(T.And(end[0] < tokens, sequence[T.min(end[0], tokens - 1)] == sequence[start])):
            store(longest, 0, T.max(longest[0], positions[end[0]]), 1)
            store(end, 0, end[0] + 1, 1)
        last, count = T.bind(longest[0]), T.bind(end[0] - start)
        with T.serial(0, T.floordiv(last, BLOCK) + 1) as block:
            base = head.spec.paging.row(head.buffers["page_table"], sequence[start], block * BLOCK)
            _rebuild(head, base, T.bind(T.min(last - block * BLOCK, BLOCK - 1)))
            with T.serial(0, T.floordiv(count, TOKENS)) as tile:
                _see(head, [T.bind(start + tile * TOKENS + i) for i in range(TOKENS)], block)
            with T.serial(0, T.floormod(count, TOKENS)) as i:
                _see(head, [T.bind(start + count - 1 - i)], block)
        store(first, 0, end[0], 1)


def _rebuild(head: _Head, base: Expr, last: Expr) -> None:
    """Keys and values of the block whose cache rows start at `base`; slots past `last` repeat it."""
    spec, paging, at, scratch = head.spec, head.spec.paging, head.at, head.scratch
    cache = head.buffers["cache"]
    with T.serial(0, BLOCK) as slot:
        row = T.bind(base + T.Cast("int64", T.min(slot, last)) * paging.width)
        latent = T.bind(at.latent + slot * at.latent_stride)

        def copy(column: Expr, lanes: int) -> None:
            store(scratch, latent + column, load_f32(cache, row + column, lanes, paging.element), lanes)

        columns(paging.rank, copy)
        padding = spec.weight.padded_k(paging.rank) - paging.rank
        columns(padding, lambda column, lanes: store(scratch, latent + paging.rank + column, f32(0, lanes), lanes))
        with T.serial(0, paging.d) as j:
            key = load_f32(cache, row + paging.rank + j, 1, paging.element)
            store(scratch, at.keys + (spec.nope + j) * BLOCK + slot, key, 1)

    def keys(block: Expr) -> None:
        with T.serial(0, T.min(LANES, spec.nope - block * LANES)) as n, T.serial(0, BLOCK) as slot:
            value = scratch[at.turn + slot * LANES + n]
            store(scratch, at.keys + (block * LANES + n) * BLOCK + slot, value, 1)

    for role, n in (("w_uk", spec.nope), ("w_uv", spec.v)):
        w = Weight.of(head.buffers, role, spec.weight, n, paging.rank)
        with T.serial(0, w.blocks) as block:
            if role == "w_uk":
                _project(head, w, block, at.turn, LANES)
                keys(block)
            else:
                _project(head, w, block, T.bind(at.values + block * LANES), at.value_stride)


def _project(head: _Head, w: Weight, block: Expr, out: Expr, stride: int) -> None:
    """scratch[out + slot*stride : + 16] = weight `block` times the latent of each slot."""
    x = Activation(head.scratch, View(head.at.latent_stride, head.at.latent))
    tile = row_tile(head.level)
    lanes = head.level.lanes
    with T.serial(0, BLOCK // tile) as step:
        slots = [T.bind(step * tile + i) for i in range(tile)]
        sums = decoded_tile(head.level, w, x, T.bind(head.index * w.blocks + block), slots)
        for i, slot in enumerate(slots):
            for part in range(0, LANES, lanes):
                store(head.scratch, out + slot * stride + part, sums.part(0, i, part), lanes)


def _see(head: _Head, tokens: list[Expr], block: Expr) -> None:
    """Fold the block into the running softmax of `tokens`, unless it lies past all of them."""
    positions = [T.bind(head.buffers["positions"][t]) for t in tokens]
    furthest = positions[0]
    for position in positions[1:]:
        furthest = T.max(furthest, position)
    with T.If(furthest >= block * BLOCK), T.Then():
        probabilities, factors = local("f32", len(tokens) * BLOCK), local("f32", len(tokens))
        scores = _scores(head, tokens)
        for i, (t, position) in enumerate(zip(tokens, positions, strict=True)):
            _soften(head, t, i, load(scores[i], 0, BLOCK), position - block * BLOCK, probabilities, factors)
        _add_values(head, tokens, probabilities, factors)


def _scores(head: _Head, tokens: list[Expr]) -> list[Buffer]:
    """q . k of each token with the sixteen slots in the lanes."""
    spec, keys = head.spec, head.at.keys
    sums = [local("f32", BLOCK) for _ in tokens]
    for buffer in sums:
        store(buffer, 0, f32(0, BLOCK), BLOCK)
    nope = [T.bind(_view(spec).start(t, head.index)) for t in tokens]
    pe = [T.bind((t * spec.heads + head.index) * spec.paging.d) for t in tokens]
    for query, starts, offset, n in (("q_nope", nope, 0, spec.nope), ("q_pe", pe, spec.nope, spec.paging.d)):
        with T.serial(0, n) as j:
            key = T.bind(load(head.scratch, keys + (offset + j) * BLOCK, BLOCK))
            for buffer, start in zip(sums, starts, strict=True):
                q = T.broadcast(head.buffers[query][start + j], BLOCK)
                store(buffer, 0, key * q + load(buffer, 0, BLOCK), BLOCK)
    return sums


def _soften(head: _Head, t: Expr, i: int, scores: Expr, last: Expr, probabilities: Buffer, factors: Buffer) -> None:
    """Softmax step of one token: its probabilities and the factor for its output so far."""
    scratch, largest, total = head.scratch, head.at.largest + t, head.at.total + t
    scaled = scores * f32(head.spec.scale, BLOCK)
    weights, block_total, after, factor = softmax_step(scaled, last, T.bind(scratch[largest]))
    store(probabilities, i * BLOCK, weights, BLOCK)
    store(factors, i, factor, 1)
    store(scratch, total, scratch[total] * factor + block_total, 1)
    store(scratch, largest, after, 1)


def _add_values(head: _Head, tokens: list[Expr], probabilities: Buffer, factors: Buffer) -> None:
    """y = y * factor + probabilities . values, for each token."""
    y, at = head.buffers["y"], head.at
    outs = [T.bind(head.out(t)) for t in tokens]

    def column(offset: Expr, lanes: int) -> None:
        sums = [local("f32", WIDTH) for _ in tokens]
        for i, out in enumerate(outs):
            store(sums[i], 0, load(y, out + offset, lanes) * splat(factors[i], lanes), lanes)
        for slot in range(BLOCK):
            value = T.bind(load(head.scratch, at.values + slot * at.value_stride + offset, lanes))
            for i, total in enumerate(sums):
                weight = splat(probabilities[i * BLOCK + slot], lanes)
                store(total, 0, value * weight + load(total, 0, lanes), lanes)
        for i, out in enumerate(outs):
            store(y, out + offset, load(sums[i], 0, lanes), lanes)

    columns(head.spec.v, column)
