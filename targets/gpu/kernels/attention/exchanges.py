"""mla_absorbed and mla_sparse by exchanges between threads: four heads of a token are those of a workgroup.

It walks its part of the context in blocks of SLOTS. Scores: a run of 32 threads takes a few slots and reads their rows
side by side, a word a thread, for all heads; what each thread has of the dot products is then added up so that each
gets the sum of one slot and head. Softmax, online (Milakov and Gimelshein 2018, arXiv 1805.02867): a run has a head, a
thread a slot. Sums of latent rows: a thread has a word of the row, again for all heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.targets import tir as T
from dsv3c.targets.calls.cache import Paging
from dsv3c.targets.gpu.kernels.attention import coded
from dsv3c.targets.gpu.kernels.attention.paged import Attention, Span, seen_slot
from dsv3c.targets.gpu.kernels.frame import (
    LOWEST,
    THREADS,
    Buffer,
    Buffers,
    Expr,
    barrier,
    f32,
    local,
    shared,
    spread,
    store,
)
from dsv3c.targets.gpu.kernels.functions import exp
from dsv3c.targets.gpu.kernels.subgroups import RUN, RUNS, Exchange, Runs
from dsv3c.targets.gpu.kernels.words import high_bf16, load, low_bf16

HEADS = RUNS  # that share a pass over the cache: 4 queries of 576 fit into shared memory
SLOTS = RUN  # of one softmax step
FEWER = 2  # slots of which a run scores at once where its threads exchange sums by shared memory
AHEAD = 4  # slots of which a thread reads words before it uses them


@dataclass(frozen=True)
class _Units:
    """How rows of the cache are read: by words of two bfloat16 where every row begins with one, by words of four codes,
    else by element."""

    paging: Paging

    @property
    def columns(self) -> int:
        """Of a unit."""
        if self.paging.coded:
            return coded.CODES
        return 2 if self.paging.element == "bf16" and self.paging.width % 2 == 0 else 1

    @property
    def count(self) -> int:
        """Of a row's columns; the last one of codes has what fills it, too."""
        return -(-self.paging.width // self.columns)

    @property
    def stride(self) -> int:
        """From row to row."""
        return coded.row_words(self.paging) if self.paging.coded else self.count

    @property
    def latent(self) -> int:
        """Those with columns of the latent."""
        return -(-self.paging.rank // self.columns)

    def numbers(self, cache: Buffer, row: Expr, unit: Expr) -> list[Expr]:
        """The columns of a unit of the row whose first unit is `row`."""
        values = self.load(cache, row + unit)
        if not self.paging.coded:
            return values
        both = [coded.scale(cache, row, part, self.paging) for part in range(2)]
        if self.paging.rank % self.columns == 0:
            own = T.bind(T.Select(unit < self.latent, *both))
            return [T.bind(value * own) for value in values]
        parts = (T.Select(unit * self.columns + i < self.paging.rank, *both) for i in range(self.columns))
        return [T.bind(value * own) for value, own in zip(values, parts, strict=True)]

    def load(self, cache: Buffer, index: Expr) -> list[Expr]:
        """The columns of a unit as float32, codes before their scale."""
        if self.paging.coded:
            word = T.bind(cache[index])
            return [T.bind(coded.number(word, i, self.paging.element)) for i in range(self.columns)]
        if self.columns == 1:
            return [T.bind(load(cache, T.bind(index), self.paging.element))]
        word = T.bind(cache[index])
        return [T.bind(low_bf16(word)), T.bind(high_bf16(word))]


class Heads:
    """HEADS heads in one workgroup, for one way of exchange. record: numbers of a head in scratch memory, its maximum
    and total the last two.

    Made at the outermost scope of a kernel.
    """

    def __init__(
        self, spec: Attention, exchange: Exchange, buffers: Buffers, span: Span, record: int, thread: Expr
    ) -> None:
        self._spec, self._buffers, self._span, self._record, self._thread = spec, buffers, span, record, thread
        self._units = units = _Units(spec.paging)
        self._at_once = SLOTS // RUNS if exchange.width == RUN else FEWER  # slots that a run scores
        self._runs = Runs(exchange, thread, at_once=self._at_once * HEADS // 2)
        self._steps = -(-units.count // RUN)  # of a run along a row
        self._turns = -(-units.latent // THREADS)  # of the workgroup along a latent row
        self._query = shared(HEADS * units.columns * self._steps * RUN)
        self._scores = shared(SLOTS * HEADS)  # then probabilities
        self._slots = shared(SLOTS, "int32")  # first units of their rows
        self._factors, self._totals = shared(HEADS), shared(HEADS)
        self._sums = local(HEADS * units.columns * self._turns)
        self._dots = local(self._at_once * HEADS)
        self._state = local(2)  # of the head of this run: the maximum, and this thread's share of the total

    def attend(self) -> None:
        """To all slots of the span, and write what they give."""
        begin, end = self._span.begin, self._span.end
        with T.If(begin < end), T.Then():
            self._fetch_query()
            for at in range(HEADS * self._units.columns * self._turns):
                store(self._sums, at, f32(0))
            store(self._state, 0, f32(LOWEST))
            store(self._state, 1, f32(0))
            with T.serial(0, T.floordiv(end - begin + (SLOTS - 1), SLOTS)) as step:
                base = T.bind(begin + step * SLOTS)
                used = T.bind(T.min(end - base, SLOTS))
                barrier()  # the last block's slots and probabilities are read
                self._find(base)
                barrier()
                self._score(used)
                barrier()
                self._softmax(used)
                barrier()
                self._add(used)
            self._write()

    def _index(self, h: int, column: Expr) -> Expr:
        """Of a column of a query: the first columns of all units, then the second ones."""
        columns, row = self._units.columns, self._steps * RUN
        return T.floormod(column, columns) * row + T.floordiv(column, columns) + h * columns * row

    def _fetch_query(self) -> None:
        """The queries of all heads, zero behind the last column."""
        spec, paging = self._spec, self._spec.paging
        rows = [
            T.bind(self._span.token * spec.heads + T.min(self._span.head + h, spec.heads - 1)) for h in range(HEADS)
        ]

        def fetch(j: Expr) -> None:
            value = local(1)
            for h, row in enumerate(rows):
                store(value, 0, f32(0))
                with T.If(j < paging.rank):
                    with T.Then():
                        store(value, 0, self._buffers["q_latent"][row * paging.rank + j])
                    with T.Else(), T.If(j < paging.width), T.Then():
                        store(value, 0, self._buffers["q_pe"][row * paging.d + (j - paging.rank)])
                store(self._query, self._index(h, j), value[0])

        spread(self._steps * RUN * self._units.columns, self._thread, fetch)

    def _find(self, base: Expr) -> None:
        """The slots of a block; behind the end, again the last one, which may then be read as the others are."""
        with T.If(self._thread < SLOTS), T.Then():
            i = T.bind(T.min(base + self._thread, self._span.end - 1))
            row = seen_slot(self._spec, self._buffers, self._span.token, i)
            store(self._slots, self._thread, row * self._units.stride)

    def _score(self, used: Expr) -> None:
        """The scores of a block, [SLOTS, HEADS]."""
        runs, dots, at_once = self._runs, self._dots, self._at_once
        count, last = at_once * HEADS, self._units.count - 1
        with T.serial(0, T.floordiv(used + (RUNS * at_once - 1), RUNS * at_once)) as turn:
            first = T.bind((turn * RUNS + runs.run) * at_once)
            starts = [T.bind(self._slots[first + i]) for i in range(at_once)]
            for at in range(count):
                store(dots, at, f32(0))
            with T.serial(0, self._steps) as step:
                unit = T.bind(step * RUN + runs.lane)
                held = unit if self._units.count % RUN == 0 else T.bind(T.min(unit, last))
                keys = [self._units.numbers(self._buffers["cache"], start, held) for start in starts]
                for h in range(HEADS):
                    for column in range(self._units.columns):
                        row = (h * self._units.columns + column) * self._steps * RUN
                        query = T.bind(self._query[unit + row])
                        for i, key in enumerate(keys):
                            store(dots, i * HEADS + h, dots[i * HEADS + h] + query * key[column])
            runs.renew_run()
            score = runs.scattered([T.bind(dots[at]) for at in range(count)])
            each = RUN // count  # threads that have the same score
            with T.If(T.bitwise_and(runs.lane, T.int32(each - 1)) == 0), T.Then():
                at = T.bind(first * HEADS + T.floordiv(runs.lane, each))
                store(self._scores, at, score * f32(self._spec.scale))

    def _softmax(self, used: Expr) -> None:
        """Probabilities in the place of scores, 0 behind the last slot, and the factors of what was before. Those of
        latents that are codes are times their scales."""
        runs, state = self._runs, self._state
        at, inside = T.bind(runs.lane * HEADS + runs.run), T.bind(runs.lane < used)
        score = T.bind(T.Select(inside, self._scores[at], f32(LOWEST)))
        (largest,) = runs.of_run((score,), lambda a, b: (T.max(a[0], b[0]),))
        largest = T.bind(T.max(state[0], largest))
        factor = T.bind(exp(state[0] - largest))
        probability = T.bind(T.Select(inside, exp(score - largest), f32(0)))
        store(state, 0, largest)
        store(state, 1, state[1] * factor + probability)
        if self._spec.paging.coded:  # once a slot, not once a column
            row = T.bind(self._slots[runs.lane])
            probability = probability * coded.scale(self._buffers["cache"], row, 0, self._spec.paging)
        store(self._scores, at, probability)
        with T.If(runs.lane == 0), T.Then():
            store(self._factors, runs.run, factor)

    def _add(self, used: Expr) -> None:
        """The latent rows of a block times their probabilities, on top of what was before."""
        columns, sums = self._units.columns, self._sums
        each = columns * self._turns
        for h in range(HEADS):
            factor = T.bind(self._factors[h])
            for at in range(h * each, (h + 1) * each):
                store(sums, at, sums[at] * factor)
        with T.serial(0, T.floordiv(used + (AHEAD - 1), AHEAD)) as turn:
            starts = [T.bind(self._slots[turn * AHEAD + i]) for i in range(AHEAD)]
            for number in range(self._turns):
                unit = T.bind(self._thread + number * THREADS)
                with T.If(unit < self._units.latent), T.Then():
                    rows = [self._units.load(self._buffers["cache"], start + unit) for start in starts]
                    for i, row in enumerate(rows):
                        for h in range(HEADS):
                            probability = T.bind(self._scores[(turn * AHEAD + i) * HEADS + h])
                            for column, value in enumerate(row):
                                at = h * each + number * columns + column
                                store(sums, at, sums[at] + probability * value)

    def _write(self) -> None:
        spec, span, runs, rank = self._spec, self._span, self._runs, self._spec.paging.rank
        row = span.token if span.part is None else span.part
        (total,) = runs.of_run((self._state[1],), lambda a, b: (a[0] + b[0],))
        with T.If(runs.lane == 0), T.Then():
            if span.part is None:
                store(self._totals, runs.run, total)
            else:
                with T.If(span.head + runs.run < spec.heads), T.Then():
                    out = T.bind((row * spec.heads + span.head + runs.run) * self._record + rank)
                    store(self._buffers["scratch"], out, self._state[0])
                    store(self._buffers["scratch"], out + 1, total)
        if span.part is None:
            barrier()
        for h in range(HEADS):
            with T.If(span.head + h < spec.heads), T.Then():
                self._write_head(h, T.bind(row * spec.heads + span.head + h))

    def _write_head(self, h: int, row: Expr) -> None:
        rank, columns = self._spec.paging.rank, self._units.columns
        for number in range(self._turns):
            for column in range(columns):
                j = T.bind((self._thread + number * THREADS) * columns + column)
                value = self._sums[(h * self._turns + number) * columns + column]
                with T.If(j < rank), T.Then():
                    if self._span.part is None:
                        store(self._buffers["y"], row * rank + j, value / self._totals[h])
                    else:
                        store(self._buffers["scratch"], row * self._record + j, value)
