"""mla_absorbed and mla_sparse on the tensor cores of NVIDIA: sixteen heads of a token are the rows of its products.

All heads share the latent rows, so a block of SLOTS of them is staged once, as the words of the cache, for both
products. Scores: each warp multiplies the queries, which it keeps in registers, with its own quarter of the columns;
the quarters meet in shared memory, where the softmax is done online (Milakov and Gimelshein 2018, arXiv 1805.02867).
Sums of latent rows: each warp has a quarter of the columns. Queries and probabilities are rounded to bfloat16.

Two neighbouring columns lie in one word, two neighbouring slots, as the second product wants them, do not. So a word of
one slot and that of the next are taken apart and put together again, for two fragments: one has the even columns of
sixteen, the other the odd ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dsv3c.targets import tir as T
from dsv3c.targets.gpu.capabilities import MMA, SUBGROUP_32
from dsv3c.targets.gpu.kernels.attention.paged import Attention, Span, seen_slot
from dsv3c.targets.gpu.kernels.frame import LOWEST, THREADS, Buffers, Expr, add, barrier, f32, local, shared, store
from dsv3c.targets.gpu.kernels.functions import exp
from dsv3c.targets.gpu.kernels.subgroups import SHUFFLE_XOR
from dsv3c.targets.gpu.kernels.units.fragments import COLUMNS, ROWS, SUMS, WARP, K, Thread, multiply, pair

REQUIRES = frozenset({MMA, SUBGROUP_32})
HEADS = ROWS  # of a workgroup
SLOTS = 32  # of a block
WARPS = THREADS // WARP
SHARED_BYTES = 48 << 10  # that a kernel may declare
AHEAD = 2  # rows of a warp that are on their way together
SCORE_STRIDE = SLOTS + 4
PROBABILITY_STRIDE = SLOTS // 2 + 4  # words; these four more put a fragment's words into 32 banks
MEMBERS = THREADS // HEADS  # threads that share the softmax of a head
OWN = SLOTS // MEMBERS  # slots of each, side by side

_Keep = Callable[[Expr, Expr, Expr], None]


def serves(spec: Attention) -> bool:
    """Whether the rows of the cache are whole fragments, and a block of them fits into shared memory."""
    paging = spec.paging
    whole = paging.rank % K == 0 and paging.d % K == 0 and paging.element == "bf16"
    words = SLOTS * _stride(spec) + WARPS * HEADS * SCORE_STRIDE + HEADS * PROBABILITY_STRIDE + SLOTS + HEADS
    return whole and 4 * words <= SHARED_BYTES


def _stride(spec: Attention) -> int:
    """Words of a staged row: four more than a multiple of 32, so that a fragment's words lie in 32 banks."""
    words = spec.paging.width // 2
    return words + (4 - words) % 32


def attend(spec: Attention, buffers: Buffers, span: Span, record: int, thread: Expr) -> None:
    """The body of the kernel. record: numbers of a head in scratch memory, its maximum and total the last two."""
    heads, rank = Heads(spec, buffers, span, thread), spec.paging.rank
    with T.If(span.begin < span.end), T.Then():
        heads.see()
        if span.part is None:
            heads.divide()
            heads.each(lambda head, column, value: store(buffers["y"], _row(spec, span, head) * rank + column, value))
            return
        scratch = buffers["scratch"]
        heads.each(lambda head, column, value: store(scratch, _row(spec, span, head) * record + column, value))
        heads.states(lambda head, i, value: store(scratch, _row(spec, span, head) * record + rank + i, value))


def _row(spec: Attention, span: Span, head: Expr) -> Expr:
    """Of a head in y, or in scratch memory."""
    return T.bind((span.token if span.part is None else span.part) * spec.heads + head)


class Heads:
    """HEADS heads in one workgroup; those past the last are computed as the last is, and not handed on.

    Made at the outermost scope of a kernel.
    """

    def __init__(self, spec: Attention, buffers: Buffers, span: Span, thread: Expr) -> None:
        self._spec, self._buffers, self._span, self._place = spec, buffers, span, Thread.of(thread)
        self._rows = shared(SLOTS * _stride(spec), "uint32")
        self._scores = shared(WARPS * HEADS * SCORE_STRIDE)
        self._probabilities = shared(HEADS * PROBABILITY_STRIDE, "uint32")
        self._slots, self._factors = shared(SLOTS, "int32"), shared(HEADS)
        # Fragments along the columns of a row that a warp multiplies, and columns of sixteen that it sums.
        self._steps, self._runs = -(-spec.paging.width // K // WARPS), -(-spec.paging.rank // ROWS // WARPS)
        self._queries, self._partial = local(4 * self._steps, "uint32"), local(SLOTS // COLUMNS * SUMS)
        self._sums, self._state = local(2 * SUMS * self._runs), local(2)
        # A thread's part of the softmax: a head, and OWN slots.
        self._head = T.bind(T.floordiv(thread, MEMBERS))
        self._member = T.bind(T.floormod(thread, MEMBERS))

    def see(self) -> None:
        """Attend to all slots, of which there is at least one."""
        begin, end = self._span.begin, self._span.end
        self._load_queries()
        for at in range(2 * SUMS * self._runs):
            store(self._sums, at, f32(0))
        store(self._state, 0, f32(LOWEST))
        store(self._state, 1, f32(0))
        with T.serial(0, T.floordiv(end - begin + (SLOTS - 1), SLOTS)) as step:
            base = T.bind(begin + step * SLOTS)
            self._stage(base, end)
            self._score()
            self._soften(T.bind(end - base))
            self._add_values()

    def states(self, keep: _Keep) -> None:
        """keep(head, 0, the largest score), keep(head, 1, the sum of all probabilities relative to it)."""
        head = T.bind(self._span.head + self._head)
        with T.If(T.And(self._member == 0, head < self._spec.heads)), T.Then():
            for i in range(2):
                keep(head, T.int32(i), self._state[i])

    def divide(self) -> None:
        """Sums over the sum of the probabilities, for a context that was seen whole."""
        barrier()  # the factors of the last block are read
        with T.If(self._member == 0), T.Then():
            store(self._factors, self._head, f32(1) / self._state[1])
        barrier()
        self._scale()

    def each(self, keep: _Keep) -> None:
        """keep(head, column < rank, sum) for all that a thread has."""

        def run(i: int, own: Expr) -> None:
            for parity in range(2):
                for element in range(SUMS):
                    column = own * ROWS + self._place.member * 4 + (element % 2 * 2 + parity)
                    head = T.bind(self._span.head + self._place.group + element // 2 * COLUMNS)
                    with T.If(head < self._spec.heads), T.Then():
                        keep(head, T.bind(column), self._sums[(2 * i + parity) * SUMS + element])

        self._by_turns(self._spec.paging.rank // ROWS, run)

    def _by_turns(self, count: int, body: Callable[[int, Expr], None]) -> None:
        """body(i, own) for the i-th of `count` that is this warp's own."""
        for i in range(-(-count // WARPS)):
            own = T.bind(self._place.warp + i * WARPS)
            if (i + 1) * WARPS <= count:
                body(i, own)
                continue
            with T.If(own < count), T.Then():
                body(i, own)

    def _load_queries(self) -> None:
        paging, buffers, place = self._spec.paging, self._buffers, self._place
        heads = [T.min(self._span.head + place.group + half * COLUMNS, self._spec.heads - 1) for half in range(2)]
        rows = [T.bind(self._span.token * self._spec.heads + head) for head in heads]

        def query(row: Expr, column: Expr) -> Expr:
            latent, rope = buffers["q_latent"], buffers["q_pe"]
            in_rope = T.bind(column - paging.rank)
            return T.if_then_else(in_rope < 0, latent[row * paging.rank + column], rope[row * paging.d + in_rope])

        def step(i: int, own: Expr) -> None:
            for at in range(4):
                column = T.bind(own * K + place.member * 2 + at // 2 * COLUMNS)
                values = [query(rows[at % 2], T.bind(column + j)) for j in range(2)]
                store(self._queries, 4 * i + at, pair(*map(T.bind, values)))

        self._by_turns(paging.width // K, step)

    def _stage(self, base: Expr, end: Expr) -> None:
        """The rows of a block; where the context has ended, its last one again."""
        thread, words = self._place.thread, self._spec.paging.width // 2
        # All have passed a barrier since they used the slots; the rows are free behind the next.
        with T.If(thread < SLOTS), T.Then():
            row = seen_slot(self._spec, self._buffers, self._span.token, T.bind(T.min(base + thread, end - 1)))
            store(self._slots, thread, row * words)
        barrier()
        with T.serial(0, SLOTS // WARPS // AHEAD) as turn:
            rows = [T.bind((turn * AHEAD + i) * WARPS + self._place.warp) for i in range(AHEAD)]
            self._copy(rows, words)
        barrier()

    def _copy(self, rows: Sequence[Expr], words: int) -> None:
        """Rows of the block, a warp's lanes side by side; all words are asked for before the first is stored."""
        lane, stride = T.bind(T.bitwise_and(self._place.thread, T.int32(WARP - 1))), _stride(self._spec)
        starts = [T.bind(self._slots[row] + lane) for row in rows]
        firsts, last = range(0, words, WARP), T.bind(words - 1 - lane)

        def word(start: Expr, first: int) -> Expr:
            whole = first + WARP <= words
            return T.bind(self._buffers["cache"][start + (first if whole else T.min(first, last))])

        found = [[word(start, first) for first in firsts] for start in starts]
        for row, values in zip(rows, found, strict=True):
            to = T.bind(row * stride + lane)
            for first, value in zip(firsts, values, strict=True):
                if first + WARP <= words:
                    store(self._rows, to + first, value)
                    continue
                with T.If(lane < words - first), T.Then():
                    store(self._rows, to + first, value)

    def _score(self) -> None:
        """Each warp's part of the scores, into shared memory."""
        place, stride = self._place, _stride(self._spec)
        for at in range(SLOTS // COLUMNS * SUMS):
            store(self._partial, at, f32(0))
        first = T.bind(place.group * stride + place.member)

        def step(i: int, own: Expr) -> None:
            a = [T.bind(self._queries[4 * i + at]) for at in range(4)]
            for n in range(SLOTS // COLUMNS):
                word = T.bind(first + n * COLUMNS * stride + own * (K // 2))
                b = [T.bind(self._rows[word + half * (COLUMNS // 2)]) for half in range(2)]
                multiply(self._partial, n * SUMS, a, b)

        self._by_turns(self._spec.paging.width // K, step)
        for n in range(SLOTS // COLUMNS):
            for element in range(SUMS):
                row = T.bind(place.warp * HEADS + place.group + element // 2 * COLUMNS)
                at = row * SCORE_STRIDE + place.member * 2 + (n * COLUMNS + element % 2)
                store(self._scores, at, self._partial[n * SUMS + element])
        barrier()

    def _soften(self, used: Expr) -> None:
        """Probabilities relative to the largest score so far, and what turns sums before the block into sums with it.
        used: slots of the block that exist, at least one."""
        first = T.bind(self._member * OWN)
        scores = []
        for i in range(OWN):
            at = T.bind(self._head * SCORE_STRIDE + first + i)
            parts = [T.bind(self._scores[warp * HEADS * SCORE_STRIDE + at]) for warp in range(WARPS)]
            score = T.bind((parts[0] + parts[1] + (parts[2] + parts[3])) * f32(self._spec.scale))
            scores.append(T.bind(T.Select(first + i < used, score, f32(LOWEST))))
        largest = T.bind(T.max(_over_members(_tree(scores, T.max), T.max), self._state[0]))
        factor = T.bind(exp(self._state[0] - largest))
        # Of what does not exist nothing counts, not even where a thread has nothing else.
        seen = [T.bind(T.Select(score > f32(LOWEST / 2), exp(score - largest), f32(0))) for score in scores]
        total = _over_members(_tree(seen, add), add)
        store(self._state, 0, largest)
        store(self._state, 1, self._state[1] * factor + total)
        for word in range(OWN // 2):
            at = self._head * PROBABILITY_STRIDE + self._member * (OWN // 2) + word
            store(self._probabilities, at, pair(seen[2 * word], seen[2 * word + 1]))
        with T.If(self._member == 0), T.Then():
            store(self._factors, self._head, factor)
        barrier()

    def _add_values(self) -> None:
        place, stride = self._place, _stride(self._spec)
        self._scale()
        first = T.bind(place.group * PROBABILITY_STRIDE + place.member)
        a = [
            [
                T.bind(self._probabilities[first + half * COLUMNS * PROBABILITY_STRIDE + k * (K // 2) + column])
                for column in (0, COLUMNS // 2)
                for half in range(2)
            ]
            for k in range(SLOTS // K)
        ]

        def run(i: int, own: Expr) -> None:
            for k in range(SLOTS // K):
                at = T.bind((place.member * 2 + k * K) * stride + own * COLUMNS + place.group)
                words = [
                    [T.bind(self._rows[at + (half * COLUMNS + j) * stride]) for j in range(2)] for half in range(2)
                ]
                multiply(self._sums, 2 * i * SUMS, a[k], [_low_halves(*both) for both in words])
                multiply(self._sums, (2 * i + 1) * SUMS, a[k], [_high_halves(*both) for both in words])

        self._by_turns(self._spec.paging.rank // ROWS, run)

    def _scale(self) -> None:
        """All sums times the factors of their heads."""
        factors = [T.bind(self._factors[self._place.group + half * COLUMNS]) for half in range(2)]
        for at in range(2 * SUMS * self._runs):
            store(self._sums, at, self._sums[at] * factors[at % SUMS // 2])


def _over_members(value: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Of all threads that share a head, which are neighbours."""
    mask = MEMBERS // 2
    while mask:
        other = T.bind(T.call_extern("float32", SHUFFLE_XOR, value, T.int32(mask)))
        value = T.bind(combine(value, other))
        mask //= 2
    return value


def _tree(values: Sequence[Expr], combine: Callable[[Expr, Expr], Expr]) -> Expr:
    while len(values) > 1:
        values = [T.bind(combine(a, b)) for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _low_halves(first: Expr, second: Expr) -> Expr:
    return T.bind(T.bitwise_or(T.bitwise_and(first, T.uint32(0xFFFF)), T.shift_left(second, T.uint32(16))))


def _high_halves(first: Expr, second: Expr) -> Expr:
    return T.bind(T.bitwise_or(T.shift_right(first, T.uint32(16)), T.bitwise_and(second, T.uint32(0xFFFF0000))))
