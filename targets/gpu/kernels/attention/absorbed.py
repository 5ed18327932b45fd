"""mla_absorbed, which attends to the paged cache in latent space, and mla_sparse, which does to chosen positions.

A workgroup has one token, some heads and a part of the context; how it attends says `exchanges`, on tensor cores
`tensor_cores`. In short steps the contexts are cut into parts, whose results a second kernel merges by their maxima and
sums (Flash-Decoding, Dao and others 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial as bind

from dsv3c.targets import tir as T
from dsv3c.targets.calls.operands import CONTROL, Operand
from dsv3c.targets.calls.sparse import MlaSparse
from dsv3c.targets.gpu.kernels.attention import tensor_cores
from dsv3c.targets.gpu.kernels.attention.exchanges import HEADS, SLOTS, Heads
from dsv3c.targets.gpu.kernels.attention.paged import Attention, Span, seen_count
from dsv3c.targets.gpu.kernels.frame import (
    LOWEST,
    THREADS,
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
    store,
)
from dsv3c.targets.gpu.kernels.functions import exp
from dsv3c.targets.gpu.kernels.subgroups import RUN, RUNS, Exchange, Runs, forms

LEAST = 2 * SLOTS  # of a part: 64 rows of 1,152 bytes to read, for sums of 8 kB that are written and read once more
GROUPS = 512  # workgroups that fill a large GPU: four for each of 132 multiprocessors are 528
MERGED = 2  # columns that a thread merges


@dataclass(frozen=True)
class Partial:
    """q_latent, q_pe, cache, … -> y; in short steps scratch f32 [parts, heads, rank + 2]: sums, maximum, total.

    Each of T tokens has parts // T of the parts; those behind the end of its context are not written.
    """

    spec: Attention

    @property
    def parts(self) -> int:
        """So many that they fill a large GPU, and none that no context would fill."""
        spec, longest = self.spec, self.spec.paging.pages * self.spec.paging.page_size
        if isinstance(spec, MlaSparse):
            longest = min(longest, spec.k)
        return max(2, min(GROUPS // -(-spec.heads // HEADS), -(-longest // LEAST), THREADS))

    @property
    def few(self) -> int:
        """Tokens of a short step: more would have less than two parts each, and need none."""
        return self.parts // 2

    @property
    def record(self) -> int:
        return self.spec.paging.rank + 2


@dataclass(frozen=True)
class Merge:
    """scratch of Partial -> y f32 [T, heads, rank] in short steps; in long ones y is there already."""

    spec: Attention


def _scratch(spec: Attention) -> Operand:
    partial = Partial(spec)
    return Operand("scratch", "f32", partial.parts * spec.heads * partial.record)


def partial_operands(partial: Partial) -> tuple[Operand, ...]:
    spec, paging = partial.spec, partial.spec.paging
    m = spec.rows.maximum
    return (
        CONTROL,
        Operand("q_latent", "f32", m * spec.heads * paging.rank),
        Operand("q_pe", "f32", m * spec.heads * paging.d),
        paging.cache,
        *((Operand("chosen", "i32", m * spec.k),) if isinstance(spec, MlaSparse) else ()),
        *paging.operands(m),
        Operand("y", "f32", m * spec.heads * paging.rank),
        _scratch(spec),
    )


def merge_operands(merge: Merge) -> tuple[Operand, ...]:
    spec, m = merge.spec, merge.spec.rows.maximum
    y = Operand("y", "f32", m * spec.heads * spec.paging.rank)
    return (CONTROL, Operand("positions", "i32", m), _scratch(spec), y)


def partial(stage: Partial, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    """For short steps and for any, each on tensor cores and by exchanges between threads."""
    spec, found = stage.spec, list[Variant]()
    steps: tuple[tuple[_Find, Extent, int | None], ...] = (
        (_part_of_context, Extent(stage.parts), stage.few),
        (_whole_context, Extent(1, spec.rows), None),
    )
    for find, extent, most in steps:
        if tensor_cores.serves(spec):
            found.append(_on_tensor_cores(stage, operands, find, extent, most))
        body = bind(_attend, stage, find)
        found += forms(operands, (Extent(-(-spec.heads // HEADS)), extent), spec.rows, body, most)
    return tuple(found)


_Find = Callable[[Partial, Buffers, Sequence[Expr], int], Span]


def _part_of_context(stage: Partial, buffers: Buffers, groups: Sequence[Expr], heads: int) -> Span:
    """What a workgroup for `heads` heads has in a short step."""
    tokens = T.bind(T.max(row_count(buffers, stage.spec.rows), 1))
    each = T.bind(T.floordiv(T.int32(stage.parts), tokens))
    token = T.bind(T.min(T.floordiv(groups[1], each), tokens - 1))
    part, count = T.bind(groups[1] - token * each), seen_count(stage.spec, buffers, token)
    length = _part_length(count, each)
    begin = T.bind(part * length)
    end = T.bind(T.Select(part < each, T.min(begin + length, count), 0))
    return Span(token, T.bind(groups[0] * heads), begin, end, groups[1])


def _whole_context(stage: Partial, buffers: Buffers, groups: Sequence[Expr], heads: int) -> Span:
    end = seen_count(stage.spec, buffers, groups[1])
    return Span(groups[1], T.bind(groups[0] * heads), T.int32(0), end, None)


def _attend(
    stage: Partial, find: _Find, exchange: Exchange, buffers: Buffers, groups: Sequence[Expr], thread: Expr
) -> None:
    Heads(stage.spec, exchange, buffers, find(stage, buffers, groups, HEADS), stage.record, thread).attend()


def _on_tensor_cores(
    stage: Partial, operands: Sequence[Operand], find: _Find, extent: Extent, most: int | None
) -> Variant:
    spec, heads = stage.spec, tensor_cores.HEADS
    grid = (Extent(-(-spec.heads // heads)), extent)

    def emit(buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        tensor_cores.attend(spec, buffers, find(stage, buffers, groups, heads), stage.record, thread)

    return Variant(grid, lambda: prim_func(operands, grid, emit), spec.rows, most, tensor_cores.REQUIRES)


def _part_length(count: Expr, each: Expr) -> Expr:
    """Slots of a part, whole blocks, of a context of `count` that has `each` parts."""
    block = T.bind(each * SLOTS)
    return T.bind(T.max(T.floordiv(count + block - 1, block) * SLOTS, T.int32(LEAST)))


def merge(stage: Merge, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    """A workgroup for 64 columns of a head. A thread has the factor of a part; then a run takes every fourth part."""
    spec, short = stage.spec, Partial(stage.spec)
    rank, piece, stride = spec.paging.rank, MERGED * RUN, spec.heads * short.record
    pieces = -(-rank // piece)

    def emit(exchange: Exchange, buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        scratch, token, head = buffers["scratch"], groups[1], T.bind(T.floordiv(groups[0], pieces))
        runs, factors, sums = Runs(exchange, thread), shared(THREADS), shared(MERGED * THREADS)
        column = T.bind((groups[0] - head * pieces) * piece)  # the first
        each = T.bind(T.floordiv(T.int32(short.parts), T.max(row_count(buffers, spec.rows), 1)))
        count = seen_count(spec, buffers, token)
        length = _part_length(count, each)
        used = T.bind(T.floordiv(count + length - 1, length))
        first = T.bind((token * each * spec.heads + head) * short.record)
        own, values = local(2), local(MERGED)  # maximum and total of a part; sums of columns
        store(own, 0, f32(LOWEST))
        store(own, 1, f32(0))
        with T.If(thread < used), T.Then():
            at = T.bind(first + thread * stride + rank)
            store(own, 0, scratch[at])
            store(own, 1, scratch[at + 1])
        largest = runs.reduced(own[0], T.max)
        store(factors, thread, exp(own[0] - largest))
        runs.renew_all()
        total = runs.reduced(own[1] * factors[thread], add)
        places = [T.bind(first + T.min(column + i * RUN + runs.lane, rank - 1)) for i in range(MERGED)]
        for i in range(MERGED):
            store(values, i, f32(0))
        with T.serial(0, T.floordiv(T.max(used - runs.run, 0) + (RUNS - 1), RUNS)) as turn:
            part = T.bind(turn * RUNS + runs.run)
            factor = T.bind(factors[part])
            for i, place in enumerate(places):
                store(values, i, values[i] + factor * scratch[place + part * stride])
        for i in range(MERGED):
            store(sums, runs.run * piece + i * RUN + runs.lane, values[i])
        barrier()
        with T.If(T.And(thread < piece, column + thread < rank)), T.Then():
            a, b, c, d = (sums[thread + run * piece] for run in range(RUNS))
            store(buffers["y"], (token * spec.heads + head) * rank + column + thread, ((a + b) + (c + d)) / total)

    nothing = (Extent(0),)
    return (
        *forms(operands, (Extent(spec.heads * pieces), Extent(1, spec.rows)), spec.rows, emit, short.few),
        Variant(nothing, lambda: prim_func(operands, nothing, lambda *_: None), spec.rows),
    )
