"""The second kernel of index_topk: which positions have the best scores.

A workgroup has a token, a thread a run of neighbouring positions. The k-th best score is found digit by digit, four
bits from the highest: threads count the digits of their own scores. What they counted says, too, how many of its
positions each keeps, so that all write theirs in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dsv3c.targets import tir as T
from dsv3c.targets.calls.operands import CONTROL, Operand
from dsv3c.targets.calls.sparse import IndexTopk
from dsv3c.targets.gpu.kernels.attention.indexer import Scores, from_token, scratch, steps_of
from dsv3c.targets.gpu.kernels.frame import (
    THREADS,
    Buffer,
    Buffers,
    Expr,
    Extent,
    Variant,
    barrier,
    local,
    prim_func,
    row_count,
    shared,
    spread,
    store,
)
from dsv3c.targets.gpu.kernels.sampling.search import reached
from dsv3c.targets.gpu.kernels.words import unsigned

BINS, DIGIT = 16, 4  # that a thread counts in; bits
SHARES = THREADS // BINS  # in which the counts of a bin are added up
AHEAD = 8  # scores that a thread reads before it looks at them


@dataclass(frozen=True)
class Choice:
    """The scratch of Scores -> y i32 [T, k], the rows of its tokens."""

    scores: Scores


def stages(spec: IndexTopk, binding: int) -> tuple[Scores | Choice, ...]:
    """Scores of as many tokens as there is room for in `binding` bytes are made, then used; then those of the next."""
    tokens = spec.rows.maximum
    count = max(1, min(tokens, binding // 4 // Scores(spec, 0, tokens).stride))
    parts = [Scores(spec, first, count) for first in range(0, tokens, count)]
    return tuple(stage for scores in parts for stage in (scores, Choice(scores)))


def choice_operands(choice: Choice) -> tuple[Operand, ...]:
    spec, m = choice.scores.spec, choice.scores.spec.rows.maximum
    return (CONTROL, Operand("positions", "i32", m), scratch(choice.scores), Operand("y", "i32", m * spec.k))


def choice(stage: Choice, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    scores, spec = stage.scores, stage.scores.spec
    grid = (Extent(1, spec.rows, most=scores.count),)

    def emit(buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        token, sizes = T.bind(groups[0] + scores.first), (BINS * THREADS, THREADS, THREADS, THREADS)
        own = _Select(scores, buffers, token, thread, *(shared(size, "int32") for size in sizes))
        with T.If(token < row_count(buffers, spec.rows)), T.Then():
            count = T.bind(buffers["positions"][token] + 1)
            with T.If(count > spec.k):
                with T.Then():
                    own.choose(count)
                with T.Else():
                    spread(spec.k, thread, lambda i: own.put(i, T.Select(i < count, i, T.int32(-1))))

    form = Variant(grid, lambda: prim_func(operands, grid, emit), spec.rows)
    return from_token(scores, operands, (form,))


@dataclass(frozen=True)
class _Select:
    """What a workgroup of `choice` has. counts i32 [BINS, THREADS], shares i32 [BINS, SHARES]: of its digits; above,
    equal i32 [THREADS]: scores of each thread that are better than the last that is kept, and that equal it."""

    scores: Scores
    buffers: Buffers
    token: Expr
    thread: Expr
    counts: Buffer
    shares: Buffer
    above: Buffer
    equal: Buffer

    def put(self, i: Expr, position: Expr) -> None:
        store(self.buffers["y"], self.token * self.scores.spec.k + i, position)

    def choose(self, count: Expr) -> None:
        """The best of more positions than are kept."""
        steps = steps_of(count)
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
            store(state, word, T.int32(self.scores.spec.k if word == rest else 0))
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
        first = T.bind(self.scores.start(self.token) + self.thread)
        with T.serial(0, T.floordiv(own + (AHEAD - 1), AHEAD)) as turn:
            numbers = [T.bind(turn * AHEAD + i) for i in range(AHEAD)]
            places = [T.bind(T.min(number, own - 1) * THREADS) for number in numbers]
            read = [T.bind(T.reinterpret("uint32", self.buffers["scratch"][first + place])) for place in places]
            for number, score in zip(numbers, read, strict=True):
                with T.If(number < own), T.Then():
                    look(number, score)
