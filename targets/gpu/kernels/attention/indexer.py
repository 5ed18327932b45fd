"""The indexer of sparse attention: index_write, and index_topk in two kernels, scores and then the choice.

Scores: a workgroup has a token and blocks of 64 positions. Their products with all heads are made 64 x 32 over 32 in
shared memory; a thread weighs those that it has, eight of them are added up to a score. A score is kept as a whole
number of the same order, where the thread reads it that the choice gives the position to.

Choice: a workgroup a token, a thread a run of neighbouring positions. The k-th best score is found digit by digit, four
bits from the highest: threads count the digits of their own scores. What they counted says, too, how many of its
positions each keeps, so that all write theirs in order.

Scores of as many tokens as fit into SCRATCH are made, then used; steps of more tokens repeat both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dsv3c.targets import tir as T
from dsv3c.targets.calls.operands import CONTROL, Operand, view_of
from dsv3c.targets.calls.sparse import IndexTopk, IndexWrite
from dsv3c.targets.gpu.kernels.attention.paged import Column, element, slot, writing
from dsv3c.targets.gpu.kernels.attention.tiles import COLUMNS, ROW_STEP, ROWS, SIDE, SIDE_STEP, STRIDE, TURNS, Sides, zeros
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
from dsv3c.targets.gpu.kernels.sampling.search import reached
from dsv3c.targets.gpu.kernels.subgroups import Runs
from dsv3c.targets.gpu.kernels.words import unsigned

SCRATCH = 128 << 20  # bytes of scores: what every Vulkan device binds at once
FEW, GROUPS, GROUPS_OF_MANY = 16, 512, 16  # tokens of a short step; workgroups of a token in it, and in longer ones
BINS, DIGIT = 16, 4  # that a thread counts in; bits
SHARES = THREADS // BINS  # in which the counts of a bin are added up
AHEAD = 8  # scores that a thread reads before it looks at them
_SIGN = 0x80000000


@dataclass(frozen=True)
class Scores:
    """q, weights, cache, … -> scratch i32 [count, THREADS * steps] of the tokens from `first` on, at most `count`: where
    a token has more than k positions, their scores as numbers of the same order. Thread t of the choice has positions
    t * steps' …, one in each row of THREADS, with just so many steps' as the context takes."""

    spec: IndexTopk
    first: int
    count: int

    @property
    def stride(self) -> int:
        """Of a token."""
        return THREADS * _steps(self.spec.paging.pages * self.spec.paging.page_size)


@dataclass(frozen=True)
class Choice:
    """scratch of Scores -> y i32 [T, k], those tokens' rows."""

    spec: IndexTopk
    first: int
    count: int


def stages(spec: IndexTopk) -> tuple[Scores | Choice, ...]:
    return tuple(_stages(spec))


def _stages(spec: IndexTopk) -> Iterator[Scores | Choice]:
    each = max(1, SCRATCH // 4 // Scores(spec, 0, 1).stride)
    for first in range(0, spec.rows.maximum, each):
        count = min(each, spec.rows.maximum)
        yield Scores(spec, first, count)
        yield Choice(spec, first, count)


def _steps(positions: Expr) -> Expr:
    """Positions of a thread."""
    return (positions + (THREADS - 1)) // THREADS


def _scratch(scores: Scores) -> Operand:
    return Operand("scratch", "i32", scores.count * scores.stride)


def scores_operands(scores: Scores) -> tuple[Operand, ...]:
    spec, paging, m = scores.spec, scores.spec.paging, scores.spec.rows.maximum
    return (
        CONTROL,
        Operand("q", "f32", m * spec.heads * paging.width),
        Operand("weights", "f32", m * spec.heads),
        paging.cache,
        *paging.operands(m),
        _scratch(scores),
    )


def choice_operands(choice: Choice) -> tuple[Operand, ...]:
    spec, m = choice.spec, choice.spec.rows.maximum
    scratch = _scratch(Scores(spec, choice.first, choice.count))
    return (CONTROL, Operand("positions", "i32", m), scratch, Operand("y", "i32", m * spec.k))


def write(spec: IndexWrite, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    """Mean and variance one after the other: the squares of what is left of a large mean would have no digits."""
    width, half, view = spec.paging.width, spec.rotated // 2, view_of(spec.view, 1, spec.paging.width)

    def columns(buffers: Buffers, t: Expr, thread: Expr, runs: Runs) -> Column:
        x, start, value = buffers["x"], T.bind(view.start(t)), local(1)

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
            sides, slots, token = Sides.of(thread), shared(ROWS, "int32"), T.bind(groups[1] + stage.first)
            own = _Blocks(stage, buffers, token, thread, sides, slots)
            with T.If(_chooses(stage, buffers, token)), T.Then():
                own.score(groups[0], grid[0].maximum)

        return Variant(grid, lambda: prim_func(operands, grid, emit), spec.rows, most)

    return _behind(stage, operands, (form(GROUPS, stage.first + FEW), form(GROUPS_OF_MANY, None)))


def _behind(stage: Scores | Choice, operands: Sequence[Operand], forms: tuple[Variant, ...]) -> tuple[Variant, ...]:
    """Steps that end before the first token launch nothing."""
    nothing = (Extent(0),)
    if not stage.first:
        return forms
    return (
        Variant(nothing, lambda: prim_func(operands, nothing, lambda *_: None), stage.spec.rows, stage.first),
        *forms,
    )


def _chooses(stage: Scores, buffers: Buffers, token: Expr) -> Expr:
    """Whether there is the token, and it has more positions than it keeps."""
    there = T.bind(token < row_count(buffers, stage.spec.rows))
    return T.And(there, buffers["positions"][T.min(token, stage.spec.rows.maximum - 1)] >= stage.spec.k)


@dataclass(frozen=True)
class _Blocks:
    """What a workgroup of `scores` has. slots i32 [ROWS]: first elements of the rows of a block."""

    stage: Scores
    buffers: Buffers
    token: Expr
    thread: Expr
    sides: Sides
    slots: Buffer

    def score(self, first: Expr, groups: int) -> None:
        """Every `groups`-th block of the context from `first` on."""
        count = T.bind(self.buffers["positions"][self.token] + 1)
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
            position, steps = T.bind(base + self.thread), T.bind(_steps(count))
            thread = T.bind(T.floordiv(position, steps))
            at = (self.token - self.stage.first) * self.stage.stride + (position - thread * steps) * THREADS + thread
            store(self.buffers["scratch"], at, _ordered(parts[0]))


def _ordered(score: Expr) -> Expr:
    """The bits of a u32 of the order of the numbers; both zeros are one."""
    bits = T.bind(T.reinterpret("uint32", score))
    bits = T.bind(T.Select(bits == T.uint32(_SIGN), T.uint32(0), bits))
    turned = T.bitwise_xor(bits, T.Select(bits < T.uint32(_SIGN), T.uint32(_SIGN), T.uint32(0xFFFFFFFF)))
    return T.reinterpret("int32", T.bind(turned))


def choice(stage: Choice, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    spec = stage.spec
    grid = (Extent(1, spec.rows, most=stage.count),)

    def emit(buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        token, spaces = T.bind(groups[0] + stage.first), (BINS * THREADS, THREADS, THREADS, THREADS)
        own = _Select(stage, buffers, token, thread, *(shared(size, "int32") for size in spaces))
        with T.If(token < row_count(buffers, spec.rows)), T.Then():
            count = T.bind(buffers["positions"][token] + 1)
            with T.If(count > spec.k):
                with T.Then():
                    own.choose(count)
                with T.Else():
                    spread(spec.k, thread, lambda i: own.put(i, T.Select(i < count, i, T.int32(-1))))

    form = Variant(grid, lambda: prim_func(operands, grid, emit), spec.rows)
    return _behind(stage, operands, (form,))


@dataclass(frozen=True)
class _Select:
    """What a workgroup of `choice` has. counts i32 [BINS, THREADS], shares i32 [BINS, SHARES]: of its digits; above,
    equal i32 [THREADS]: scores of each thread that are better than the last that is kept, and that equal it."""

    stage: Choice
    buffers: Buffers
    token: Expr
    thread: Expr
    counts: Buffer
    shares: Buffer
    above: Buffer
    equal: Buffer

    def put(self, i: Expr, position: Expr) -> None:
        store(self.buffers["y"], self.token * self.stage.spec.k + i, position)

    def choose(self, count: Expr) -> None:
        """The best of more positions than are kept."""
        steps = T.bind(_steps(count))
        first = T.bind(self.thread * steps)
        own = T.bind(T.max(T.min(count - first, steps), 0))
        edge, rest = self._edge(own)
        barrier()
        at, ties = local(1, "int32"), local(1, "int32")  # where it writes next; equal ones that it may keep
        store(at, 0, T.int32(0))
        store(ties, 0, T.int32(0))
        with T.serial(0, self.thread) as before:
            store(at, 0, at[0] + self.above[before])
            store(ties, 0, ties[0] + self.equal[before])
        store(at, 0, at[0] + T.min(ties[0], rest))
        store(ties, 0, rest - ties[0])

        def keep(i: Expr, score: Expr) -> None:
            with T.If(T.Or(score > edge, T.And(score == edge, ties[0] > 0))), T.Then():
                self.put(at[0], first + i)
                store(at, 0, at[0] + 1)
                store(ties, 0, ties[0] - T.Select(score == edge, T.int32(1), T.int32(0)))

        self._each(own, keep)

    def _edge(self, own: Expr) -> tuple[Expr, Expr]:
        """The last score that is kept, and how many of its equals are; or, where a digit more would change nothing, the
        least that it could be. A thread's counts of what is better and equal are stored."""
        thread, low, state = self.thread, local(1, "uint32"), local(4, "int32")
        rest, above, equal, done = range(4)
        store(low, 0, T.uint32(0))
        for word in range(4):
            store(state, word, T.int32(self.stage.spec.k if word == rest else 0))
        with T.serial(0, 32 // DIGIT) as level, T.If(state[done] == 0), T.Then():
            shift = T.bind(unsigned(32 - DIGIT - level * DIGIT))
            self._count(own, low, shift)
            place = reached(BINS, lambda i: unsigned(self._total(BINS - 1 - i)), unsigned(state[rest]))
            with T.serial(0, place.index) as i:
                store(state, above, state[above] + self.counts[(BINS - 1 - i) * THREADS + thread])
            digit = T.bind(BINS - 1 - place.index)
            store(state, equal, self.counts[digit * THREADS + thread])
            store(state, rest, T.Cast("int32", place.rest))
            store(state, done, T.Select(self._total(digit) == state[rest], T.int32(1), T.int32(0)))
            store(low, 0, T.bitwise_or(low[0], T.shift_left(unsigned(digit), shift)))
        store(self.above, thread, state[above])
        store(self.equal, thread, state[equal])
        return T.bind(low[0]), T.bind(state[rest])

    def _count(self, own: Expr, low: Buffer, shift: Expr) -> None:
        """The digits at `shift` of the scores that have those of `low` above."""
        thread = self.thread
        for b in range(BINS):
            store(self.counts, b * THREADS + thread, T.int32(0))

        def look(_: Expr, score: Expr) -> None:
            digits = T.bind(T.shift_right(T.bitwise_xor(score, low[0]), shift))  # low has none from here on
            with T.If(digits < T.uint32(BINS)), T.Then():
                at = T.bind(T.Cast("int32", digits) * THREADS + thread)
                store(self.counts, at, self.counts[at] + 1)

        self._each(own, look)
        barrier()
        share, sums = T.bind(T.floordiv(thread, SHARES) * THREADS + T.floormod(thread, SHARES)), local(1, "int32")
        store(sums, 0, T.int32(0))
        for i in range(THREADS // SHARES):
            store(sums, 0, sums[0] + self.counts[share + i * SHARES])
        store(self.shares, thread, sums[0])
        barrier()

    def _total(self, b: Expr) -> Expr:
        """Of a bin."""
        shares = [self.shares[b * SHARES + i] for i in range(SHARES)]
        return T.bind(sum(shares[1:], shares[0]))

    def _each(self, own: Expr, look: Callable[[Expr, Expr], None]) -> None:
        """look(i, score) for the thread's own scores, in order; several are read before the first is looked at."""
        stride = Scores(self.stage.spec, self.stage.first, self.stage.count).stride
        first = T.bind((self.token - self.stage.first) * stride + self.thread)
        with T.serial(0, T.floordiv(own + (AHEAD - 1), AHEAD)) as turn:
            numbers = [T.bind(turn * AHEAD + i) for i in range(AHEAD)]
            places = [T.bind(T.min(number, own - 1) * THREADS) for number in numbers]
            read = [T.bind(T.reinterpret("uint32", self.buffers["scratch"][first + place])) for place in places]
            for number, score in zip(numbers, read, strict=True):
                with T.If(number < own), T.Then():
                    look(number, score)
