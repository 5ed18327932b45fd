"""The indexer of sparse attention: index_write, and the first kernel of index_topk, which makes scores.

A workgroup has a token and blocks of 64 positions. Their products with all heads are made 64 x 32 over 32 in shared
memory; a thread weighs those that it has, eight of them are added up to a score. A score is kept as a whole number of
the same order, where the thread reads it to which the choice gives the position (see `choice`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsv3c.targets import tir as T
from dsv3c.targets.calls.operands import CONTROL, Operand, view_of
from dsv3c.targets.calls.sparse import IndexTopk, IndexWrite
from dsv3c.targets.gpu.kernels.attention.paged import Column, element, slot, writing
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
    THREADS,
    Buffer,
    Buffers,
    Expr,
    Extent,
    Variant,
    add,
    barrier,
    f32,
    local,
    prim_func,
    row_count,
    shared,
    spread,
    store,
)
from dsv3c.targets.gpu.kernels.rows import rotated
from dsv3c.targets.gpu.kernels.subgroups import Runs

FEW, GROUPS, GROUPS_OF_MANY = 16, 512, 16  # tokens of a short step; workgroups of a token in it, and in longer ones
_SIGN = 0x80000000


@dataclass(frozen=True)
class Scores:
    """q, weights, cache, … -> scratch [count, stride]: of the tokens from `first` on, at most `count`, those with more
    than k positions have their scores there, as u32 of the same order.

    In the choice a thread has `steps_of(positions)` neighbouring ones, its i-th in word i * THREADS + thread.
    """

    spec: IndexTopk
    first: int
    count: int

    @property
    def stride(self) -> int:
        """Words of a token."""
        return THREADS * -(-self.spec.paging.pages * self.spec.paging.page_size // THREADS)

    def start(self, token: Expr) -> Expr:
        return (token - self.first) * self.stride


def steps_of(positions: Expr) -> Expr:
    return T.bind(T.floordiv(positions + (THREADS - 1), THREADS))


def scratch(scores: Scores) -> Operand:
    return Operand("scratch", "i32", scores.count * scores.stride)


def scores_operands(scores: Scores) -> tuple[Operand, ...]:
    spec, paging, m = scores.spec, scores.spec.paging, scores.spec.rows.maximum
    return (
        CONTROL,
        Operand("q", "f32", m * spec.heads * paging.width),
        Operand("weights", "f32", m * spec.heads),
        paging.cache,
        *paging.operands(m),
        scratch(scores),
    )


def write(spec: IndexWrite, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    """Mean and variance one after the other: the squares of what is left of a large mean would have no digits."""
    width, half, view = spec.paging.width, spec.rotated // 2, view_of(spec.view, 1, spec.paging.width)

    def columns(buffers: Buffers, t: Expr, thread: Expr, runs: Runs) -> Column:
        x, start, value = buffers["k"], T.bind(view.start(t)), local(1)

        def mean(term: Column) -> Expr:
            store(value, 0, f32(0))
            spread(width, thread, lambda j: store(value, 0, value[0] + term(j)))
            return T.bind(runs.reduced(value[0], add) * f32(1 / width))

        middle = mean(lambda j: x[start + j])
        runs.renew_all()

        def square(j: Expr) -> Expr:
            apart = T.bind(x[start + j] - middle)
            return apart * apart

        scale = T.bind(f32(1) / T.sqrt(mean(square) + f32(spec.eps)))

        def normed(j: Expr) -> Expr:
            return T.bind((x[start + j] - middle) * scale * buffers["weight"][j] + buffers["bias"][j])

        def column(j: Expr) -> Expr:
            with T.If(j < spec.rotated):
                with T.Then():
                    angle = T.bind(T.if_then_else(j < half, j, j - half))
                    pair = rotated(normed, buffers["table"], t * spec.rotated, spec.rotated, spec.interleave, angle)
                    store(value, 0, T.Select(j < half, pair[0], pair[1]))
                with T.Else():
                    store(value, 0, normed(j))
            return T.bind(value[0])

        return column

    return writing(spec.rows, spec.paging, operands, columns)


def scores(stage: Scores, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    spec = stage.spec
    blocks = -(-spec.paging.pages * spec.paging.page_size // ROWS)

    def form(groups: int, most: int | None) -> Variant:
        grid = (Extent(min(blocks, groups)), Extent(1, spec.rows, most=stage.count))

        def emit(buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
            token = T.bind(groups[1] + stage.first)
            own = _Blocks(stage, buffers, token, thread, Sides.of(thread), shared(ROWS, "int32"))
            with T.If(token < row_count(buffers, spec.rows)), T.Then():
                count = T.bind(buffers["positions"][token] + 1)
                with T.If(count > spec.k), T.Then():
                    own.score(groups[0], grid[0].maximum, count)

        return Variant(grid, lambda: prim_func(operands, grid, emit), spec.rows, most)

    return from_token(stage, operands, (form(GROUPS, stage.first + FEW), form(GROUPS_OF_MANY, None)))


def from_token(stage: Scores, operands: Sequence[Operand], forms: tuple[Variant, ...]) -> tuple[Variant, ...]:
    """Those forms; steps that end before the first token launch nothing."""
    if not stage.first:
        return forms
    nothing = (Extent(0),)
    return Variant(nothing, lambda: prim_func(operands, nothing, lambda *_: None), stage.spec.rows, stage.first), *forms


@dataclass(frozen=True)
class _Blocks:
    """What a workgroup of `scores` has. slots i32 [ROWS]: first elements of the rows of a block."""

    stage: Scores
    buffers: Buffers
    token: Expr
    thread: Expr
    sides: Sides
    slots: Buffer

    def score(self, first: Expr, groups: int, count: Expr) -> None:
        """Every `groups`-th block of a context of `count` from `first` on."""
        blocks = T.bind(T.floordiv(count + (ROWS - 1), ROWS))
        with T.serial(0, T.floordiv(T.max(blocks - first, 0) + (groups - 1), groups)) as step:
            base = T.bind((first + step * groups) * ROWS)
            self._find(base, count)
            self._keep(base, count, self._totals())

    def _find(self, base: Expr, count: Expr) -> None:
        """The slots of a block; behind the end again the last one, which may be read as the others are."""
        paging = self.stage.spec.paging
        with T.If(self.thread < ROWS), T.Then():
            position = T.bind(T.min(base + self.thread, count - 1))
            row = slot(paging, self.buffers["page_table"], self.buffers["sequence"][self.token], position)
            store(self.slots, self.thread, row * paging.stride)
        barrier()

    def _totals(self) -> Buffer:
        """f32 [TURNS]: a thread's part of the scores of its rows."""
        spec, totals = self.stage.spec, local(TURNS)
        for i in range(TURNS):
            store(totals, i, f32(0))
        with T.serial(0, -(-spec.heads // COLUMNS)) as turn:
            first, sums = T.bind(turn * COLUMNS), zeros()
            for column in range(0, spec.paging.width, COLUMNS):
                self._stage(first, column)
                self.sides.multiply(sums)
            for j in range(SIDE):
                head = T.bind(first + self.sides.side + j * SIDE_STEP)
                given = self.buffers["weights"][self.token * spec.heads + T.min(head, spec.heads - 1)]
                weight = T.bind(T.Select(head < spec.heads, given, f32(0)))
                for i in range(TURNS):
                    store(totals, i, totals[i] + weight * T.max(sums[i * SIDE + j], f32(0)))
        return totals

    def _stage(self, head: Expr, first: int) -> None:
        """Columns first … first + 31 of the block's keys into `left`, and of as many heads' queries into `right`; zeros
        behind the last."""
        spec, paging = self.stage.spec, self.stage.spec.paging

        def column_of(item: Expr) -> tuple[Expr, Expr, Expr, Expr]:
            row, within = T.bind(T.floordiv(item, COLUMNS)), T.bind(T.floormod(item, COLUMNS))
            return row, within, T.bind(T.min(within + first, paging.width - 1)), within + first < paging.width

        def key(item: Expr) -> None:
            row, within, column, inside = column_of(item)
            value = T.bind(element(paging, self.buffers["cache"], self.slots[row], column))
            store(self.sides.left, row * STRIDE + within, T.Select(inside, value, f32(0)))

        def query(item: Expr) -> None:
            row, within, column, inside = column_of(item)
            own = T.bind(T.min(head + row, spec.heads - 1))
            value = T.bind(self.buffers["q"][(self.token * spec.heads + own) * paging.width + column])
            store(self.sides.right, within * STRIDE + row, T.Select(inside, value, f32(0)))

        spread(ROWS * COLUMNS, self.thread, key)
        spread(COLUMNS * COLUMNS, self.thread, query)

    def _keep(self, base: Expr, count: Expr, totals: Buffer) -> None:
        for i in range(TURNS):
            store(self.sides.left, (self.sides.row + i * ROW_STEP) * STRIDE + self.sides.side, totals[i])
        barrier()
        with T.If(T.And(self.thread < ROWS, base + self.thread < count)), T.Then():
            parts = [T.bind(self.sides.left[self.thread * STRIDE + i]) for i in range(SIDE_STEP)]
            while len(parts) > 1:
                parts = [T.bind(a + b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
            position, steps = T.bind(base + self.thread), steps_of(count)
            thread = T.bind(T.floordiv(position, steps))
            at = self.stage.start(self.token) + (position - thread * steps) * THREADS + thread
            store(self.buffers["scratch"], at, _ordered(parts[0]))


def _ordered(score: Expr) -> Expr:
    """The bits of a u32 of the order of the numbers; both zeros are one."""
    bits = T.bind(T.reinterpret("uint32", score))
    bits = T.bind(T.Select(bits == T.uint32(_SIGN), T.uint32(0), bits))
    turned = T.bitwise_xor(bits, T.Select(bits < T.uint32(_SIGN), T.uint32(_SIGN), T.uint32(0xFFFFFFFF)))
    return T.reinterpret("int32", T.bind(turned))
