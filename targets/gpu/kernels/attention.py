"""mla_write, which fills the paged latent cache, and mla_absorbed, which attends to it in latent space.

A workgroup of mla_absorbed has one token, a few heads and a part of the context. It walks blocks of slots: scores, with
four threads a slot; softmax, online (Milakov and Gimelshein 2018, arXiv 1805.02867); sums of latent rows, with a thread
for each run of columns. In short steps the context is cut into parts, whose results a second kernel merges by their
maxima and sums (Flash-Decoding, Dao and others 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from dsv3c.targets.cpu.kernels.attention import MlaAbsorbed
from dsv3c.targets.cpu.kernels.cache import MlaWrite, Paging
from dsv3c.targets.gpu.kernels.frame import (
    CONTROL,
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
    view_of,
)
from dsv3c.targets.gpu.kernels.functions import exp
from dsv3c.targets.gpu.kernels.rows import elementwise, inverse_rms, rotated
from dsv3c.targets.gpu.kernels.subgroups import Exchange, Runs, forms
from dsv3c.targets.gpu.kernels.words import bf16_bits, load
from dsv3c.targets.plan import Operand

FEW = 8  # tokens of a step whose contexts are cut into parts
PARTS = 8
HEADS = 4  # that share a pass over the cache: 4 queries of 576 fit into shared memory
SLOTS = 32  # of one softmax step
SLICES = THREADS // SLOTS


@dataclass(frozen=True)
class Partial:
    """q_latent, q_pe, cache, … -> y; in short steps scratch f32 [FEW, heads, PARTS, rank + 2]: sums, maximum, total."""

    spec: MlaAbsorbed


@dataclass(frozen=True)
class Merge:
    """scratch of Partial -> y f32 [T, heads, rank] in short steps; in long ones y is there already."""

    spec: MlaAbsorbed


def slot(paging: Paging, page_table: Buffer, sequence: Expr, position: Expr) -> Expr:
    """The cache row of a position."""
    page = page_table[sequence * paging.pages + T.floordiv(position, paging.page_size)]
    return T.bind(page * paging.page_size + T.floormod(position, paging.page_size))


def write(spec: MlaWrite, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    """A workgroup a token. Rows of odd width share words with their neighbours: then one workgroup writes all, and as a
    word always has the same thread, no half of it is lost."""
    paging, view = spec.paging, view_of(spec.view, 1, spec.paging.width)
    alone = paging.element == "bf16" and paging.width % 2 == 1
    grid = (Extent() if alone else Extent(1, spec.rows),)

    def emit(exchange: Exchange, buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        runs, total = Runs(exchange, thread), local(1)
        if not alone:
            _write_token(spec, buffers, groups[0], view.start(groups[0]), thread, runs, total)
            return
        with T.serial(0, row_count(buffers, spec.rows)) as t:
            _write_token(spec, buffers, t, view.start(t), thread, runs, total)
            barrier()  # the sum is read before the next one is added up

    return forms(operands, grid, spec.rows, emit)


def _write_token(
    spec: MlaWrite, buffers: Buffers, t: Expr, start: Expr, thread: Expr, runs: Runs, total: Buffer
) -> None:
    paging, x, cache = spec.paging, buffers["kv_a"], buffers["cache"]
    start, half = T.bind(start), paging.d // 2
    row = slot(paging, buffers["page_table"], buffers["sequence"][t], buffers["positions"][t])
    out = T.bind(row * paging.width)
    scale = inverse_rms(x, start, paging.rank, spec.eps, thread, runs, total)
    value = local(1)

    def column(j: Expr) -> Expr:
        """Column j of the row, 0 <= j < width."""
        with T.If(j < paging.rank):
            with T.Then():
                store(value, 0, x[start + j] * scale * buffers["weight"][j])
            with T.Else():
                at = T.bind(j - paging.rank)
                angle = T.bind(T.if_then_else(at < half, at, at - half))
                table = buffers["table"]
                pair = rotated(x, start + paging.rank, table, t * paging.d, paging.d, spec.interleave, angle)
                store(value, 0, T.Select(at < half, pair[0], pair[1]))
        return T.bind(value[0])

    if paging.element == "f32":
        spread(paging.width, thread, lambda j: store(cache, out + j, column(j)))
        return
    if paging.width % 2 == 0:

        def whole(w: Expr) -> None:
            low, high = T.bind(bf16_bits(column(w * 2))), bf16_bits(column(w * 2 + 1))
            word = T.bitwise_or(low, T.shift_left(high, T.uint32(16)))
            store(cache, T.shift_right(out, T.int32(1)) + w, word)

        spread(paging.width // 2, thread, whole)
        return
    first = T.bind(T.shift_right(out, T.int32(1)))
    words = T.bind(T.shift_right(out + (paging.width - 1), T.int32(1)) - first + 1)

    def halves(number: Expr) -> None:
        # Word w belongs to thread w modulo THREADS, wherever the row starts.
        w = T.bind(first + T.floormod(number + THREADS - T.floormod(first, THREADS), THREADS))
        with T.serial(0, T.floordiv(words + (THREADS - 1), THREADS)) as turn:
            own = T.bind(w + turn * THREADS)
            for part in range(2):
                j = T.bind(own * 2 + part - out)
                with T.If(T.And(own < first + words, T.And(j >= 0, j < paging.width))), T.Then():
                    kept = T.bitwise_and(cache[own], T.uint32(0xFFFF0000 if part == 0 else 0xFFFF))
                    bits = T.bind(bf16_bits(column(j)))
                    store(cache, own, T.bitwise_or(kept, bits if part == 0 else T.shift_left(bits, T.uint32(16))))

    halves(thread)


def _record(spec: MlaAbsorbed) -> int:
    return spec.paging.rank + 2


def _scratch(spec: MlaAbsorbed) -> Operand:
    return Operand("scratch", "f32", FEW * spec.heads * PARTS * _record(spec))


def partial_operands(partial: Partial) -> tuple[Operand, ...]:
    spec, paging = partial.spec, partial.spec.paging
    m = spec.rows.maximum
    return (
        CONTROL,
        Operand("q_latent", "f32", m * spec.heads * paging.rank),
        Operand("q_pe", "f32", m * spec.heads * paging.d),
        Operand("cache", paging.element, None),
        *paging.operands(m),
        Operand("y", "f32", m * spec.heads * paging.rank),
        _scratch(spec),
    )


def merge_operands(merge: Merge) -> tuple[Operand, ...]:
    spec = merge.spec
    return (CONTROL, _scratch(spec), Operand("y", "f32", spec.rows.maximum * spec.heads * spec.paging.rank))


def partial(stage: Partial, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    spec = stage.spec
    runs = -(-spec.heads // HEADS)
    short = (Extent(runs), Extent(1, spec.rows), Extent(PARTS))
    long = (Extent(runs), Extent(1, spec.rows), Extent())
    return (
        Variant(short, lambda: _attend(spec, operands, short, PARTS), spec.rows, FEW),
        Variant(long, lambda: _attend(spec, operands, long, 1), spec.rows),
    )


def merge(stage: Merge, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    spec, record = stage.spec, _record(stage.spec)
    rank = spec.paging.rank

    def body(buffers: Buffers, row: Expr, column: Expr) -> None:
        scratch, head = buffers["scratch"], T.bind(T.floordiv(column, rank))
        first = T.bind((row * spec.heads + head) * (PARTS * record))
        largest = T.bind(scratch[first + rank])
        for part in range(1, PARTS):
            largest = T.bind(T.max(largest, scratch[first + part * record + rank]))
        total, value = f32(0), f32(0)
        for part in range(PARTS):
            at = first + part * record
            factor = T.bind(exp(scratch[at + rank] - largest))
            total = T.bind(total + factor * scratch[at + (rank + 1)])
            value = T.bind(value + factor * scratch[at + (column - head * rank)])
        store(buffers["y"], row * (spec.heads * rank) + column, value / total)

    (short,) = elementwise(operands, spec.rows, spec.heads * rank, body)
    nothing = (Extent(0),)
    return (
        Variant(short.grid, short.build, spec.rows, FEW),
        Variant(nothing, lambda: prim_func(operands, nothing, lambda *_: None), spec.rows),
    )


def _attend(spec: MlaAbsorbed, operands: Sequence[Operand], grid: Sequence[Extent], parts: int) -> object:
    paging = spec.paging
    rank, width = paging.rank, paging.width
    columns = -(-rank // THREADS)  # of a thread

    def emit(buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        cache, token, first = buffers["cache"], groups[1], T.bind(groups[0] * HEADS)
        part = groups[2] if parts > 1 else 0
        query, scores = shared(HEADS * width), shared(HEADS * THREADS)
        slots, state = shared(SLOTS, "int32"), shared(3 * HEADS)  # maximum, total, factor of each head
        sums, dots = local(HEADS * columns), local(HEADS)
        heads = [T.bind(T.min(first + h, spec.heads - 1)) for h in range(HEADS)]
        count = T.bind(buffers["positions"][token] + 1)
        length = T.bind(T.floordiv(count + (parts * SLOTS - 1), parts * SLOTS) * SLOTS)
        begin = T.bind(part * length)
        end = T.bind(T.min(begin + length, count))

        def fetch(j: Expr) -> None:
            for h, head in enumerate(heads):
                row = T.bind(token * spec.heads + head)
                with T.If(j < rank):
                    with T.Then():
                        store(query, h * width + j, buffers["q_latent"][row * rank + j])
                    with T.Else():
                        store(query, h * width + j, buffers["q_pe"][row * paging.d + (j - rank)])

        spread(width, thread, fetch)
        for h in range(HEADS):
            for column in range(columns):
                store(sums, h * columns + column, f32(0))
        with T.If(thread < HEADS), T.Then():
            store(state, thread, f32(LOWEST))
            store(state, HEADS + thread, f32(0))
        with T.serial(0, T.floordiv(T.max(end - begin, 0) + (SLOTS - 1), SLOTS)) as step:
            base = T.bind(begin + step * SLOTS)
            used = T.bind(T.min(end - base, SLOTS))
            barrier()  # the last block's probabilities are read
            with T.If(thread < used), T.Then():
                row = slot(paging, buffers["page_table"], buffers["sequence"][token], T.bind(base + thread))
                store(slots, thread, row * width)
            barrier()
            index, piece = T.bind(T.floormod(thread, SLOTS)), T.bind(T.floordiv(thread, SLOTS))
            for h in range(HEADS):
                store(dots, h, f32(0))
            with T.If(index < used), T.Then():
                start = T.bind(slots[index])
                with T.serial(0, -(-width // SLICES)) as turn:
                    j = T.bind(turn * SLICES + piece)
                    with T.If(j < width), T.Then():
                        key = T.bind(load(cache, T.bind(start + j), paging.element))
                        for h in range(HEADS):
                            store(dots, h, dots[h] + query[h * width + j] * key)
            for h in range(HEADS):
                store(scores, h * THREADS + thread, dots[h])
            barrier()
            with T.If(thread < HEADS), T.Then():
                _softmax_step(scores, state, thread, used, spec.scale)
            barrier()
            for h in range(HEADS):
                factor = T.bind(state[2 * HEADS + h])
                for column in range(columns):
                    store(sums, h * columns + column, sums[h * columns + column] * factor)
            with T.serial(0, used) as i:
                start = T.bind(slots[i])
                for column in range(columns):
                    c = T.bind(thread + column * THREADS)
                    with T.If(c < rank), T.Then():
                        value = T.bind(load(cache, T.bind(start + c), paging.element))
                        for h in range(HEADS):
                            at = h * columns + column
                            store(sums, at, sums[at] + scores[h * THREADS + i] * value)
        if parts > 1:
            barrier()  # a part may have no slots, and then none was met since the state was written
        for h in range(HEADS):
            with T.If(first + h < spec.heads), T.Then():
                row = T.bind(token * spec.heads + first + h)
                out = T.bind((row * PARTS + part) * _record(spec) if parts > 1 else row * rank)
                for column in range(columns):
                    c = T.bind(thread + column * THREADS)
                    value = sums[h * columns + column]
                    with T.If(c < rank), T.Then():
                        if parts > 1:
                            store(buffers["scratch"], out + c, value)
                        else:
                            store(buffers["y"], out + c, value / state[HEADS + h])
                if parts > 1:
                    with T.If(thread < 2), T.Then():
                        store(buffers["scratch"], out + rank + thread, state[thread * HEADS + h])

    return prim_func(operands, grid, emit)


def _softmax_step(scores: Buffer, state: Buffer, h: Expr, used: Expr, scale: float) -> None:
    """Probabilities of one head's block in place of its scores, whose slices are added up; the state goes on."""
    running = local(2)
    store(running, 0, state[h])
    with T.serial(0, used) as i:
        at = T.bind(h * THREADS + i)
        score = scores[at]
        for piece in range(1, SLICES):
            score = score + scores[at + piece * SLOTS]
        store(scores, at, score * f32(scale))
        store(running, 0, T.max(running[0], scores[at]))
    largest = T.bind(running[0])
    factor = T.bind(exp(state[h] - largest))
    store(running, 1, state[T.int32(HEADS) + h] * factor)
    with T.serial(0, used) as i:
        at = T.bind(h * THREADS + i)
        store(scores, at, exp(scores[at] - largest))
        store(running, 1, running[1] + scores[at])
    store(state, h, largest)
    store(state, T.int32(HEADS) + h, running[1])
    store(state, T.int32(2 * HEADS) + h, factor)
