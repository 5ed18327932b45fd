"""mla_materialized: attention of many tokens on keys and values rebuilt from the latent cache.

A workgroup has a head and every n-th block of 32 slots, so that each key and value is rebuilt once. It keeps those of
a block in registers and lets all tokens of the sequence see the block, 64 at a time: scores and sums of values are
products of 64 x 32 over 32 staged in shared memory. What a token has seen so far, sums relative to the largest score
(online softmax), lies in scratch memory; a second kernel merges the n parts of the context.

Scratch memory is only read by the thread that wrote it, so no barrier has to order it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.targets import tir as T
from dsv3c.targets.calls.attention import MlaMaterialized
from dsv3c.targets.calls.operands import CONTROL, Operand, view_of, weight_operands
from dsv3c.targets.gpu.kernels.attention.paged import element, slot
from dsv3c.targets.gpu.kernels.attention.tiles import (
    COLUMNS,
    ROW_STEP,
    ROWS,
    SIDE,
    SIDE_STEP,
    STRIDE,
    TURNS,
    Sides,
    zeros,
)
from dsv3c.targets.gpu.kernels.frame import (
    LOWEST,
    THREADS,
    Buffer,
    Buffers,
    Expr,
    Extent,
    Variant,
    barrier,
    f32,
    local,
    prim_func,
    row_count,
    shared,
    spread,
    store,
)
from dsv3c.targets.gpu.kernels.functions import exp
from dsv3c.targets.gpu.kernels.products import ROW_BLOCKS, ROW_TILE, ThreadTile, tile
from dsv3c.targets.gpu.kernels.rows import elementwise
from dsv3c.targets.gpu.kernels.weights import Weight

SLOTS = ROW_TILE  # of a block, as many as a product has columns
TOKENS = ROWS  # that see a block together
WORKGROUPS = 256  # that heads times parts should reach, a few for each processor of a large device


@dataclass(frozen=True)
class SeeBlocks:
    """q_nope, q_pe, cache, w_uk, w_uv, … -> scratch f32 [heads, parts, T, v + 2]: sums, largest score, total."""

    spec: MlaMaterialized

    @property
    def parts(self) -> int:
        return max(1, WORKGROUPS // self.spec.heads)

    @property
    def record(self) -> int:
        return self.spec.v + 2


@dataclass(frozen=True)
class MergeBlocks:
    """scratch of SeeBlocks -> y f32 [T, heads, v]."""

    spec: MlaMaterialized


def _scratch(spec: MlaMaterialized) -> Operand:
    see = SeeBlocks(spec)
    return Operand("scratch", "f32", spec.heads * see.parts * spec.rows.maximum * see.record)


def see_operands(see: SeeBlocks) -> tuple[Operand, ...]:
    spec, paging = see.spec, see.spec.paging
    m, view = spec.rows.maximum, view_of(spec.view, spec.heads, spec.nope)
    return (
        CONTROL,
        Operand("q_nope", "f32", m * view.row_stride),
        Operand("q_pe", "f32", m * spec.heads * paging.d),
        paging.cache,
        *weight_operands("w_uk", spec.weight, (spec.heads,), spec.nope, paging.rank),
        *weight_operands("w_uv", spec.weight, (spec.heads,), spec.v, paging.rank),
        *paging.operands(m),
        _scratch(spec),
    )


def merge_operands(merge: MergeBlocks) -> tuple[Operand, ...]:
    spec = merge.spec
    return (CONTROL, _scratch(spec), Operand("y", "f32", spec.rows.maximum * spec.heads * spec.v))


def merge(stage: MergeBlocks, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    spec, see = stage.spec, SeeBlocks(stage.spec)

    def body(buffers: Buffers, row: Expr, column: Expr) -> None:
        scratch, head = buffers["scratch"], T.bind(T.floordiv(column, spec.v))
        largest, sums = local(1), local(2)

        def record(part: Expr) -> Expr:
            return T.bind(_record(see, head, part, row))

        store(largest, 0, f32(LOWEST))
        store(sums, 0, f32(0))
        store(sums, 1, f32(0))
        with T.serial(0, see.parts) as part:
            store(largest, 0, T.max(largest[0], scratch[record(part) + spec.v]))
        with T.serial(0, see.parts) as part:
            at = record(part)
            total = T.bind(scratch[at + (spec.v + 1)])
            with T.If(total > f32(0)), T.Then():  # or the part has no sums
                factor = exp(scratch[at + spec.v] - largest[0])
                store(sums, 0, sums[0] + factor * scratch[at + (column - head * spec.v)])
                store(sums, 1, sums[1] + factor * total)
        store(buffers["y"], row * (spec.heads * spec.v) + column, sums[0] / sums[1])

    return elementwise(operands, spec.rows, spec.heads * spec.v, body)


def _record(see: SeeBlocks, head: Expr, part: Expr, token: Expr) -> Expr:
    """Where the scratch operand has what a token saw."""
    return ((head * see.parts + part) * see.spec.rows.maximum + token) * see.record


def see(stage: SeeBlocks, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    spec = stage.spec
    grid = (Extent(spec.heads), Extent(stage.parts))

    def emit(buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        spaces = Sides.of(thread), shared(TOKENS), shared(SLOTS, "int32")
        group = _Group(stage, buffers, groups[0], groups[1], thread, *spaces)
        sequence, positions = buffers["sequence"], buffers["positions"]
        end, last = local(1, "int32"), local(1, "int32")
        count = row_count(buffers, spec.rows)
        with T.serial(0, count) as t:
            before = T.bind(sequence[T.max(t - 1, 0)])
            with T.If(T.Or(t == 0, before != sequence[t])), T.Then():
                # A run of tokens of one sequence; `last` is the furthest position among them.
                store(end, 0, t)
                store(last, 0, T.int32(0))
                with T.serial(0, count - t) as i:
                    own = T.bind(t + i)
                    with T.If(T.And(end[0] == own, sequence[own] == sequence[t])), T.Then():
                        store(end, 0, own + 1)
                        store(last, 0, T.max(last[0], positions[own]))
                group.run(t, T.bind(end[0]), T.bind(last[0]))

    return (Variant(grid, lambda: prim_func(operands, grid, emit), spec.rows),)


@dataclass(frozen=True)
class _Tokens:
    """TOKENS tokens from `start` on, before `end`."""

    start: Expr
    end: Expr

    def at(self, i: Expr) -> Expr:
        """The i-th; past the end the last one, whose results are not kept."""
        return T.bind(T.min(self.start + i, self.end - 1))


@dataclass(frozen=True)
class _Group:
    """One workgroup.

    Its products are of tokens by k with k by slots or columns.
    factors f32 [64]: from sums before a block to sums after it. slots i32 [32]: cache rows of the block.
    """

    see: SeeBlocks
    buffers: Buffers
    head: Expr
    part: Expr
    thread: Expr
    sides: Sides
    factors: Buffer
    slots: Buffer

    def run(self, start: Expr, end: Expr, last: Expr) -> None:
        """Tokens start … end - 1, all of one sequence, over this workgroup's blocks of slots up to `last`."""
        spec, paging, parts = self.see.spec, self.see.spec.paging, self.see.parts
        blocks = T.bind(T.floordiv(last, SLOTS) + 1)
        with T.If(self.part >= blocks), T.Then():
            spread(end - start, self.thread, lambda i: self._keep(start + i, f32(LOWEST), f32(0)))
        with T.serial(0, T.floordiv(blocks - self.part + (parts - 1), parts)) as step:
            first = T.bind((self.part + step * parts) * SLOTS)
            # All have come to a barrier since they read the slots of the last block.
            with T.If(self.thread < SLOTS), T.Then():
                position = T.bind(T.min(first + self.thread, last))
                row = slot(paging, self.buffers["page_table"], self.buffers["sequence"][start], position)
                store(self.slots, self.thread, row * paging.stride)
            barrier()
            keys, values = self._rebuilt("w_uk", spec.nope), self._rebuilt("w_uv", spec.v)
            with T.serial(0, T.floordiv(end - start + (TOKENS - 1), TOKENS)) as turn:
                tokens = _Tokens(T.bind(start + turn * TOKENS), end)
                with T.If(T.Or(step == 0, self._furthest(tokens) >= first)), T.Then():
                    scores = self._scores(tokens, keys)
                    self._softmax(tokens, scores, first, step == 0)
                    self._add_values(tokens, step == 0, values)

    def _rebuilt(self, role: str, n: int) -> list[ThreadTile]:
        """This head's keys or values of the block."""
        weight = Weight.of(self.buffers, role, self.see.spec.weight, n, self.see.spec.paging.rank)
        own, space = T.bind(self.head * weight.blocks), (self.sides.left, self.sides.right)
        firsts = range(0, weight.blocks, ROW_BLOCKS)
        runs = [[own + i for i in range(first, min(first + ROW_BLOCKS, weight.blocks))] for first in firsts]
        return [tile(weight, run, self._latent, self.thread, space) for run in runs]

    def _latent(self, row: Expr, column: Expr) -> Expr:
        return element(self.see.spec.paging, self.buffers["cache"], self.slots[row], column)

    def _furthest(self, tokens: _Tokens) -> Expr:
        """The largest position among them."""
        furthest = local(1, "int32")
        store(furthest, 0, T.int32(0))
        with T.serial(0, TOKENS) as i:
            store(furthest, 0, T.max(furthest[0], self.buffers["positions"][tokens.at(i)]))
        return T.bind(furthest[0])

    def _scores(self, tokens: _Tokens, keys: Sequence[ThreadTile]) -> Buffer:
        """f32 [TURNS * SIDE] of a thread."""
        spec, paging = self.see.spec, self.see.spec.paging
        view, scores = view_of(spec.view, spec.heads, spec.nope), zeros()

        def nope(token: Expr, column: Expr) -> Expr:
            return self.buffers["q_nope"][T.bind(view.start(token, self.head)) + column]

        def rope(token: Expr, column: Expr) -> Expr:
            return self.buffers["q_pe"][(token * spec.heads + self.head) * paging.d + column]

        for first in range(0, spec.nope, COLUMNS):
            self._stage_queries(tokens, nope, first, spec.nope)
            self._stage(keys, first, lambda of_slot, column: column * STRIDE + of_slot)
            self.sides.multiply(scores)
        for first in range(0, paging.d, COLUMNS):
            self._stage_queries(tokens, rope, first, paging.d)
            with T.serial(0, COLUMNS * SLOTS // THREADS) as turn:
                item = T.bind(turn * THREADS + self.thread)
                of_slot, column = T.bind(T.floordiv(item, COLUMNS)), T.bind(T.floormod(item, COLUMNS))
                key = self._latent(of_slot, paging.rank + T.min(first + column, paging.d - 1))
                store(self.sides.right, column * STRIDE + of_slot, key)
            self.sides.multiply(scores)
        return scores

    def _stage_queries(self, tokens: _Tokens, query: Callable[[Expr, Expr], Expr], first: int, n: int) -> None:
        """Columns first … first + 31 of the tokens' queries, zeros from the n-th on, into `left`."""
        with T.serial(0, TOKENS * COLUMNS // THREADS) as turn:
            item = T.bind(turn * THREADS + self.thread)
            row, column = T.bind(T.floordiv(item, COLUMNS)), T.bind(T.floormod(item, COLUMNS))
            value = T.bind(query(tokens.at(row), T.bind(T.min(first + column, n - 1))))
            store(self.sides.left, row * STRIDE + column, T.Select(first + column < n, value, f32(0)))

    def _stage(self, tiles: Sequence[ThreadTile], first: int, place: Callable[[Expr, Expr], Expr]) -> None:
        """Columns first … first + 31 of what threads hold, into `right`; zeros where there is no such block."""
        for within in range(COLUMNS // LANES):
            many, block = divmod(first // LANES + within, ROW_BLOCKS)
            there = many < len(tiles) and block < tiles[many].blocks
            own = tiles[min(many, len(tiles) - 1)]
            for of_slot, values in own.rows():
                column = T.bind(own.lane + within * LANES)
                store(self.sides.right, place(of_slot, column), values[block] if there else f32(0))

    def _softmax(self, tokens: _Tokens, scores: Buffer, first: Expr, is_first: Expr) -> None:
        """Probabilities relative to the largest score so far into `left`, and each token's factor; a thread a token."""
        spec, scratch = self.see.spec, self.buffers["scratch"]
        row, side = self.sides.row, self.sides.side
        for i in range(TURNS):
            own = T.bind(row + i * ROW_STEP)
            position = T.bind(self.buffers["positions"][tokens.at(own)])
            for j in range(SIDE):
                visible = first + side + j * SIDE_STEP <= position
                score = T.Select(visible, scores[i * SIDE + j] * f32(spec.scale), f32(LOWEST))
                store(self.sides.left, own * STRIDE + side + j * SIDE_STEP, score)
        barrier()
        with T.If(self.thread < TOKENS), T.Then():
            at = self._record(tokens.at(self.thread))
            start, kept = T.bind(self.thread * STRIDE), tokens.start + self.thread < tokens.end
            before = T.bind(T.if_then_else(is_first, f32(LOWEST), scratch[at + spec.v]))
            total, largest = local(1), local(1)
            store(largest, 0, before)
            with T.serial(0, SLOTS) as i:
                store(largest, 0, T.max(largest[0], self.sides.left[start + i]))
            factor = exp(before - largest[0])
            store(total, 0, T.if_then_else(is_first, f32(0), scratch[at + (spec.v + 1)]) * factor)
            with T.serial(0, SLOTS) as i:
                score = T.bind(self.sides.left[start + i])
                # Of what is not seen nothing counts, not even where nothing else is: then the largest is LOWEST, too.
                seen = T.bind(T.Select(score > f32(LOWEST / 2), exp(score - largest[0]), f32(0)))
                store(self.sides.left, start + i, seen)
                store(total, 0, total[0] + seen)
            store(self.factors, self.thread, factor)
            with T.If(kept), T.Then():
                self._keep(tokens.start + self.thread, largest[0], total[0])

    def _add_values(self, tokens: _Tokens, is_first: Expr, values: Sequence[ThreadTile]) -> None:
        """The tokens' sums of values go on; the probabilities stay in `left` for all of them."""
        spec, scratch = self.see.spec, self.buffers["scratch"]
        row, side = self.sides.row, self.sides.side
        for begin in range(0, spec.v, COLUMNS):
            sums = zeros()
            self._stage(values, begin, lambda of_slot, column: of_slot * STRIDE + column)
            self.sides.multiply(sums)
            for i in range(TURNS):
                own = T.bind(row + i * ROW_STEP)
                at, factor = self._record(tokens.at(own)), T.bind(self.factors[own])
                for j in range(SIDE):
                    column = T.bind(side + (begin + j * SIDE_STEP))
                    with T.If(T.And(tokens.start + own < tokens.end, column < spec.v)), T.Then():
                        before = T.if_then_else(is_first, f32(0), scratch[at + column])
                        store(scratch, at + column, before * factor + sums[i * SIDE + j])

    def _keep(self, token: Expr, largest: Expr, total: Expr) -> None:
        at = self._record(token)
        store(self.buffers["scratch"], at + self.see.spec.v, largest)
        store(self.buffers["scratch"], at + (self.see.spec.v + 1), total)

    def _record(self, token: Expr) -> Expr:
        return T.bind(_record(self.see, self.head, self.part, token))
