"""The next token of each row of logits as the runtime's engine.sampling takes it: the best, or one that filters leave.

Nothing is sorted. A logit's distance to the best one is its key, 28 bits that order the ids as the sampler does (equal
ones by id). A `SearchStep` counts or weighs the keys in sixteen ranges, seven of them find the key at which a number of
ids, or a share of the weight, is reached. Each pass is a kernel with a workgroup for a segment of the vocabulary;
the next one adds up what the segments found, every workgroup for itself:

    best      the likeliest id (ties: the lowest), NaN counting as the largest number
    largest   7 passes by count: the last of the top-k
    weigh     the weight of these
    nucleus   7 passes by weight: the last of the top-p
    total     the weight of what the filters, min-p among them, left
    draw      7 passes by weight: the key at the place that the host's uniform number names
    within    which segment has the id, among the equal keys or, without top-k and top-p, among all ids in order

Weights are whole numbers, shares of 2^-31 of their sum before top-p, so that sums do not depend on the order of adding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsv3c.targets import tir as T
from dsv3c.targets.calls.operands import CONTROL, Operand, Rows
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
    shared,
    store,
)
from dsv3c.targets.gpu.kernels.sampling.search import (
    BEST,
    BINS,
    EDGE,
    INVERSE_TEMPERATURE,
    LAST_KEY,
    LOW,
    NOT_DRAWN,
    PARAMS,
    PASS,
    REST,
    SCALE,
    START,
    STATE,
    TIES,
    TOP_K,
    WEIGH,
    WITHIN,
    Search,
    reached,
)
from dsv3c.targets.gpu.kernels.subgroups import Exchange, Runs, forms, larger
from dsv3c.targets.gpu.kernels.words import unsigned

EACH = 16  # logits of a thread
SEGMENT = THREADS * EACH
STEPS = 24  # of a row with all filters; even, as Finish reads what the second of two steps writes
ORDERED_STEPS = 4  # of a row without top-k and top-p: weigh, total, within, and one that hands on

# Of float32 bits as ordered integers: all but the sign, NaN, infinity, -infinity.
_SIZE, _NAN, _INFINITY, _BELOW_ALL = 0x7FFFFFFF, 0x7FFFFFFF, 0x7F800000, -0x7F800001


@dataclass(frozen=True)
class Greedy:
    """logits f32 [R, V] -> token i32 [R]: the likeliest id; -1, -2, -3 where that logit is NaN, infinity, -infinity."""

    rows: Rows
    vocab: int

    @property
    def segments(self) -> int:
        return -(-self.vocab // SEGMENT)


@dataclass(frozen=True)
class Sample(Greedy):
    """logits f32 [R, V], sampling i32 [R, 8] -> token i32 [R], as Greedy in rows of temperature 0.

    Words of a row of `sampling`: 1/temperature (bits of f32; 0 is greedy), top_k (0 is off), top_p in units of 2^-31
    (0 is off), min_p (bits of f32), a uniform number of [0, 1) in units of 2^-32, and three that are not read.
    filtered: whether rows may have top-k or top-p; they take more passes.
    """

    filtered: bool = True


@dataclass(frozen=True)
class Best:
    """logits -> scratch: the best key and id of each segment."""

    spec: Greedy  # itself, no Sample


@dataclass(frozen=True)
class Start:
    """scratch of Best -> token, and the state of rows that go on."""

    spec: Greedy


@dataclass(frozen=True)
class SearchStep:
    """One pass, from one half of the scratch to the other."""

    spec: Sample
    backwards: bool = False


@dataclass(frozen=True)
class Finish:
    """scratch of the last SearchStep -> token in rows that are drawn."""

    spec: Sample


Stage = Best | Start | SearchStep | Finish


def sampling_stages(spec: Greedy) -> tuple[Stage, ...]:
    """The kernels of both forms of Sample are the same."""
    likeliest = Greedy(spec.rows, spec.vocab)
    if not isinstance(spec, Sample):
        return (Best(likeliest), Start(likeliest))
    pairs, any_filter = (STEPS if spec.filtered else ORDERED_STEPS) // 2, Sample(spec.rows, spec.vocab)
    steps = (SearchStep(any_filter), SearchStep(any_filter, backwards=True)) * pairs
    return (Best(likeliest), Start(any_filter), *steps, Finish(any_filter))


def sampling_operands(stage: Stage) -> tuple[Operand, ...]:
    spec, m = stage.spec, stage.spec.rows.maximum
    scratch = Operand("scratch", "i32", _row_start(spec, m))
    logits, token = Operand("logits", "f32", m * spec.vocab), Operand("token", "i32", m)
    params = (Operand("sampling", "i32", m * PARAMS),) if isinstance(spec, Sample) else ()
    if isinstance(stage, Best):
        return (CONTROL, logits, scratch)
    if isinstance(stage, Start):
        return (CONTROL, *params, token, scratch)
    if isinstance(stage, SearchStep):
        return (CONTROL, logits, *params, scratch)
    return (CONTROL, logits, *params, token, scratch)


def _half_words(spec: Greedy) -> int:
    return STATE + spec.segments * BINS


def _row_start(spec: Greedy, row: Any) -> Any:
    """In the scratch operand: behind the best of each segment of all rows, a row's two halves of the words it has."""
    words = 2 * _half_words(spec) if isinstance(spec, Sample) else 0
    return spec.rows.maximum * 2 * spec.segments + row * words


def best(stage: Best, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    spec = stage.spec
    grid = (Extent(spec.segments), Extent(1, spec.rows))

    def emit(exchange: Exchange, buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        logits, scratch, row = buffers["logits"], buffers["scratch"], groups[1]
        found, runs = local(2, "int32"), Runs(exchange, thread, ("int32", "int32"))
        store(found, 0, T.int32(_BELOW_ALL))
        store(found, 1, T.int32(spec.vocab - 1))
        with T.serial(0, EACH) as turn:
            i = T.bind(groups[0] * SEGMENT + turn * THREADS + thread)
            with T.If(i < spec.vocab), T.Then():
                order = _order(T.bind(T.reinterpret("int32", logits[row * spec.vocab + i])))
                with T.If(order > found[0]), T.Then():
                    store(found, 0, order)
                    store(found, 1, i)
        order, token = runs.of_all((found[0], found[1]), larger)
        with T.If(thread < 2), T.Then():
            value = T.Select(thread == 0, order, token)
            store(scratch, (row * spec.segments + groups[0]) * 2 + thread, value)

    return forms(operands, grid, spec.rows, emit)


def start(stage: Start, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    spec = stage.spec
    grid = (Extent(1, spec.rows),)

    def emit(exchange: Exchange, buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        scratch, row = buffers["scratch"], groups[0]
        found, runs = local(2, "int32"), Runs(exchange, thread, ("int32", "int32"))
        first = T.bind(row * (2 * spec.segments))
        store(found, 0, T.int32(_BELOW_ALL))
        store(found, 1, T.int32(spec.vocab - 1))
        with T.serial(0, -(-spec.segments // THREADS)) as turn:
            segment = T.bind(turn * THREADS + thread)
            with T.If(segment < spec.segments), T.Then():
                order = T.bind(scratch[first + segment * 2])
                with T.If(order > found[0]), T.Then():
                    store(found, 0, order)
                    store(found, 1, scratch[first + segment * 2 + 1])
        order, likeliest = runs.of_all((found[0], found[1]), larger, spec.segments)
        failed = T.Select(order == _NAN, T.int32(-1), T.int32(-2))
        token = T.Select(order >= _INFINITY, failed, T.Select(order == _BELOW_ALL, T.int32(-3), likeliest))
        with T.If(thread == 0), T.Then():
            store(buffers["token"], row, token)
            if isinstance(spec, Sample):
                begin, params = T.bind(_row_start(spec, row)), buffers["sampling"]
                drawn = T.And(params[row * PARAMS + INVERSE_TEMPERATURE] > 0, _is_finite(order))
                for word, value in (
                    (PASS, T.Select(drawn, T.int32(START), T.int32(NOT_DRAWN))),
                    (LOW, T.int32(0)),
                    (REST, params[row * PARAMS + TOP_K]),
                    (EDGE, T.int32(LAST_KEY)),
                    (TIES, T.int32(0)),
                    (SCALE, T.int32(0)),
                    (BEST, T.Select(order >= 0, order, T.bitwise_xor(order, T.int32(_SIZE)))),
                ):
                    store(scratch, begin + word, value)

    made = forms(operands, grid, spec.rows, emit)
    return made if spec.segments > 1 else made[-1:]  # one has nothing to exchange


def step(stage: SearchStep, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    spec = stage.spec
    grid = (Extent(spec.segments), Extent(1, spec.rows))

    def emit(exchange: Exchange, buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        scratch, row = buffers["scratch"], groups[1]
        halves = [T.bind(_row_start(spec, row) + i * _half_words(spec)) for i in range(2)]
        before, after = reversed(halves) if stage.backwards else halves
        bins, space, runs = shared(BINS, "uint32"), shared(THREADS * BINS, "uint32"), Runs(exchange, thread)
        search = Search(spec.vocab, buffers, row, local(STATE, "int32"))
        search.load(scratch, before)
        over = T.bind(search[PASS] >= WITHIN)  # then finds are handed on
        _add_segments(spec, scratch, before, bins, space, thread)
        weight = _weight_of_segments(spec, scratch, before, runs, thread)
        search.advance(bins, weight)
        with T.If(T.And(groups[0] == 0, thread == 0)), T.Then():
            for word in range(STATE):
                store(scratch, after + word, search.state[word])
        counts, sums = local(BINS, "uint32"), local(1)
        for b in range(BINS):
            store(counts, b, T.uint32(0))
        store(sums, 0, f32(0))
        with T.serial(0, EACH) as turn:
            i = T.bind(groups[0] * SEGMENT + turn * THREADS + thread)
            with T.If(T.And(i < spec.vocab, T.Not(over))), T.Then():
                search.look(i, counts, sums)
        own = T.bind(after + STATE + groups[0] * BINS)
        _add_threads(counts, space, thread)
        total = runs.reduced(sums[0], add)
        with T.If(thread < BINS), T.Then():
            value = local(1, "int32")
            store(value, 0, T.Cast("int32", _of_bin(space, thread)))
            with T.If(search[PASS] == WEIGH), T.Then():
                store(value, 0, T.reinterpret("int32", total))
            with T.If(over), T.Then():
                store(value, 0, scratch[before + STATE + groups[0] * BINS + thread])
            store(scratch, own + thread, value[0])

    return forms(operands, grid, spec.rows, emit)


def finish(stage: Finish, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    """A workgroup a row: the segment, then the thread, then the id at which the rest is reached."""
    spec = stage.spec
    grid = (Extent(1, spec.rows),)

    def emit(buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        scratch, row, space = buffers["scratch"], groups[0], shared(THREADS, "uint32")
        first = T.bind(_row_start(spec, row))
        search = Search(spec.vocab, buffers, row, local(STATE, "int32"))
        search.load(scratch, first)

        def of_segment(segment: Expr) -> Expr:
            return unsigned(scratch[first + STATE + segment * BINS])

        place = reached(spec.segments, of_segment, unsigned(search[REST]))
        begin = T.bind(place.index * SEGMENT + thread * EACH)
        own = local(1, "uint32")
        store(own, 0, T.uint32(0))

        def share(j: Expr) -> Expr:
            """Of the thread's j-th id."""
            inside = T.And(begin + j < spec.vocab, search[PASS] == WITHIN)
            key = search.key(T.bind(T.min(begin + j, spec.vocab - 1)))
            return T.bind(T.Select(inside, search.within(key, search.weight(key)), T.uint32(0)))

        with T.serial(0, EACH) as j:
            store(own, 0, own[0] + share(j))
        store(space, thread, own[0])
        barrier()
        chosen = reached(THREADS, lambda i: space[i], place.rest)
        with T.If(T.And(thread == chosen.index, T.And(search[PASS] == WITHIN, own[0] > T.uint32(0)))), T.Then():
            store(buffers["token"], row, begin + reached(EACH, share, chosen.rest).index)

    return (Variant(grid, lambda: prim_func(operands, grid, emit), spec.rows),)


def _order(bits: Expr) -> Expr:
    """i32 that orders float32s by their bits: -0 is 0, NaN above all."""
    size = T.bind(T.bitwise_and(bits, T.int32(_SIZE)))
    flipped = T.Select(bits >= 0, bits, T.bitwise_xor(bits, T.int32(_SIZE)))
    return T.bind(T.Select(size > _INFINITY, T.int32(_NAN), T.Select(size == 0, T.int32(0), flipped)))


def _is_finite(order: Expr) -> Expr:
    return T.And(order < _INFINITY, order > _BELOW_ALL)


def _add_segments(spec: Sample, scratch: Buffer, start: Expr, bins: Buffer, space: Buffer, thread: Expr) -> None:
    """bins[b]: the sum over all segments of what they found, to be read behind the next barrier."""
    b, part, sums = T.bind(T.floormod(thread, BINS)), T.bind(T.floordiv(thread, BINS)), local(1, "uint32")
    parts = THREADS // BINS
    store(sums, 0, T.uint32(0))
    with T.serial(0, -(-spec.segments // parts)) as turn:
        segment = T.bind(turn * parts + part)
        with T.If(segment < spec.segments), T.Then():
            store(sums, 0, sums[0] + unsigned(scratch[start + STATE + segment * BINS + b]))
    store(space, thread, sums[0])
    barrier()
    with T.If(thread < BINS), T.Then():
        store(bins, thread, _of_bin(space, thread))


def _weight_of_segments(spec: Sample, scratch: Buffer, start: Expr, runs: Runs, thread: Expr) -> Expr:
    """The sum of the segments' first words as float32; of use after the pass WEIGH alone."""
    sums = local(1)
    store(sums, 0, f32(0))
    with T.serial(0, -(-spec.segments // THREADS)) as turn:
        segment = T.bind(turn * THREADS + thread)
        with T.If(segment < spec.segments), T.Then():
            word = T.bind(scratch[start + STATE + segment * BINS])
            store(sums, 0, sums[0] + T.reinterpret("float32", word))
    return runs.reduced(sums[0], add)


def _add_threads(counts: Buffer, space: Buffer, thread: Expr) -> None:
    """The sum of counts[b] of all threads is `_of_bin(space, b)`, to be read behind the next barrier."""
    for b in range(BINS):
        store(space, thread * BINS + b, counts[b])
    barrier()
    # As BINS divides THREADS, all that a thread adds is of one bin.
    store(space, thread, _sum([space[thread + i * THREADS] for i in range(BINS)]))


def _of_bin(space: Buffer, b: Expr) -> Expr:
    """The sum of what the threads of bin b, those of this number modulo BINS, have in space[thread]."""
    return _sum([space[b + i * BINS] for i in range(THREADS // BINS)])


def _sum(values: Sequence[Any]) -> Expr:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
