"""The paged caches: where a position has its row, which of them attention reads, and mla_write, which fills rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dsv3c.targets import tir as T
from dsv3c.targets.calls.attention import MlaAbsorbed
from dsv3c.targets.calls.cache import MlaWrite, Paging
from dsv3c.targets.calls.operands import Operand, Rows, view_of
from dsv3c.targets.calls.sparse import MlaSparse
from dsv3c.targets.gpu.kernels.attention import coded
from dsv3c.targets.gpu.kernels.frame import (
    THREADS,
    Buffer,
    Buffers,
    Expr,
    Extent,
    Variant,
    f32,
    local,
    row_count,
    spread,
    store,
)
from dsv3c.targets.gpu.kernels.rows import inverse_rms, rotated
from dsv3c.targets.gpu.kernels.subgroups import Exchange, Runs, forms
from dsv3c.targets.gpu.kernels.words import bf16_bits, load

Attention = MlaAbsorbed | MlaSparse
Column = Callable[[Expr], Expr]  # of the row of a token, 0 <= j < width
Columns = Callable[[Buffers, Expr, Expr, Runs], Column]  # (buffers, token, thread, runs)


def slot(paging: Paging, page_table: Buffer, sequence: Expr, position: Expr) -> Expr:
    """The cache row of a position."""
    page = page_table[sequence * paging.pages + T.floordiv(position, paging.page_size)]
    return T.bind(page * paging.page_size + T.floormod(position, paging.page_size))


def seen_count(spec: Attention, buffers: Buffers, token: Expr) -> Expr:
    """How many positions a token attends to."""
    context = T.bind(buffers["positions"][token] + 1)
    return T.bind(T.min(context, spec.k)) if isinstance(spec, MlaSparse) else context


def seen_slot(spec: Attention, buffers: Buffers, token: Expr, i: Expr) -> Expr:
    """The cache row of the i-th position that it attends to."""
    position = T.bind(buffers["chosen"][token * spec.k + i]) if isinstance(spec, MlaSparse) else i
    return slot(spec.paging, buffers["page_table"], buffers["sequence"][token], position)


def element(paging: Paging, cache: Buffer, start: Expr, column: Expr) -> Expr:
    """A column of the row whose first element (`paging.stride` a row) is `start`, as float32."""
    if not paging.coded:
        return load(cache, T.bind(start + column), paging.element)
    start, column = T.bind(T.shift_right(start, T.int32(2))), T.bind(column)
    word = T.bind(cache[start + T.shift_right(column, T.int32(2))])
    value = T.bind(coded.number(word, T.bitwise_and(column, T.int32(3)), paging.element))
    return value * coded.scale_of(cache, start, column, paging)


@dataclass(frozen=True)
class Span:
    """What a workgroup of attention has: its token, the first of its heads, begin … end among the positions that it
    attends to, and the part that it writes, None where it writes y."""

    token: Expr
    head: Expr
    begin: Expr
    end: Expr
    part: Expr | None


def write(spec: MlaWrite, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    paging, view = spec.paging, view_of(spec.view, 1, spec.paging.width)
    half = paging.d // 2

    def columns(buffers: Buffers, t: Expr, thread: Expr, runs: Runs) -> Column:
        x, start, value = buffers["kv_a"], T.bind(view.start(t)), local(1)
        scale = inverse_rms(x, start, paging.rank, spec.eps, thread, runs, value)

        def key(i: Expr) -> Expr:
            return x[start + paging.rank + i]

        def column(j: Expr) -> Expr:
            with T.If(j < paging.rank):
                with T.Then():
                    store(value, 0, x[start + j] * scale * buffers["weight"][j])
                with T.Else():
                    at = T.bind(j - paging.rank)
                    angle = T.bind(T.if_then_else(at < half, at, at - half))
                    pair = rotated(key, buffers["table"], t * paging.d, paging.d, spec.interleave, angle)
                    store(value, 0, T.Select(at < half, pair[0], pair[1]))
            return T.bind(value[0])

        return column

    return writing(spec.rows, paging, operands, columns)


def writing(rows: Rows, paging: Paging, operands: Sequence[Operand], columns: Columns) -> tuple[Variant, ...]:
    """A kernel that writes rows of the cache, a workgroup a token. Rows of odd width share words with their neighbours:
    then one workgroup writes all, and as a word always has the same thread, no half of it is lost."""
    alone = paging.element == "bf16" and paging.width % 2 == 1
    grid = (Extent() if alone else Extent(1, rows),)

    def emit(exchange: Exchange, buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        runs = Runs(exchange, thread)

        def write_token(t: Expr) -> None:
            column = columns(buffers, t, thread, runs)
            row = slot(paging, buffers["page_table"], buffers["sequence"][t], buffers["positions"][t])
            _write_row(paging, buffers["cache"], row, column, thread, runs)

        if not alone:
            write_token(groups[0])
            return
        with T.serial(0, row_count(buffers, rows)) as t:
            write_token(t)
            runs.renew_all()

    return forms(operands, grid, rows, emit)


def _write_row(paging: Paging, cache: Buffer, row: Expr, column: Column, thread: Expr, runs: Runs) -> None:
    if paging.coded:
        _write_codes(paging, cache, T.bind(row * coded.row_words(paging)), column, thread, runs)
        return
    out = T.bind(row * paging.width)
    if paging.element == "f32":
        spread(paging.width, thread, lambda j: store(cache, out + j, column(j)))
    elif paging.width % 2 == 0:
        _write_words(paging, cache, out, column, thread)
    else:
        _write_halves(paging, cache, out, column, thread)


def _write_words(paging: Paging, cache: Buffer, out: Expr, column: Column, thread: Expr) -> None:
    """The row of bfloat16 whose first column is element `out`, the first of a word."""

    def whole(w: Expr) -> None:
        low, high = T.bind(bf16_bits(column(w * 2))), bf16_bits(column(w * 2 + 1))
        word = T.bitwise_or(low, T.shift_left(high, T.uint32(16)))
        store(cache, T.shift_right(out, T.int32(1)) + w, word)

    spread(paging.width // 2, thread, whole)


def _write_halves(paging: Paging, cache: Buffer, out: Expr, column: Column, thread: Expr) -> None:
    """The row of bfloat16 whose first column is element `out`; its first or last word is shared with a neighbour."""
    first = T.bind(T.shift_right(out, T.int32(1)))
    words = T.bind(T.shift_right(out + (paging.width - 1), T.int32(1)) - first + 1)
    # Word w belongs to thread w modulo THREADS, wherever the row starts.
    w = T.bind(first + T.floormod(thread + THREADS - T.floormod(first, THREADS), THREADS))
    with T.serial(0, T.floordiv(words + (THREADS - 1), THREADS)) as turn:
        own = T.bind(w + turn * THREADS)
        for part in range(2):
            j = T.bind(own * 2 + part - out)
            with T.If(T.And(own < first + words, T.And(j >= 0, j < paging.width))), T.Then():
                kept = T.bitwise_and(cache[own], T.uint32(0xFFFF0000 if part == 0 else 0xFFFF))
                bits = T.bind(bf16_bits(column(j)))
                store(cache, own, T.bitwise_or(kept, bits if part == 0 else T.shift_left(bits, T.uint32(16))))


def _write_codes(paging: Paging, cache: Buffer, row: Expr, column: Column, thread: Expr, runs: Runs) -> None:
    """The row whose first word is `row`: a thread has every THREADS-th word of codes, the first one both scales."""
    inverses, most = [], local(1)
    for part, (count, first) in enumerate(((paging.rank, 0), (paging.d, paging.rank))):
        store(most, 0, f32(0))

        def grow(j: Expr, first: int = first) -> None:
            store(most, 0, T.max(most[0], T.fabs(column(j + first))))

        spread(count, thread, grow)
        runs.renew_all()
        scale, inverse = coded.scale_and_inverse(T.bind(runs.reduced(most[0], T.max)), paging.element)
        with T.If(thread == 0), T.Then():
            store(cache, row + (coded.code_words(paging) + part), T.reinterpret("uint32", scale))
        inverses.append(inverse)
    word = local(1, "uint32")

    def four(w: Expr) -> None:
        store(word, 0, T.uint32(0))
        for byte in range(coded.CODES):
            j = T.bind(w * coded.CODES + byte)
            with T.If(j < paging.width), T.Then():
                scaled = T.bind(column(j) * T.Select(j < paging.rank, *inverses))
                code = T.bind(coded.rounded(scaled, paging.element))
                store(word, 0, T.bitwise_or(word[0], T.shift_left(code, T.uint32(8 * byte))))
        store(cache, row + w, word[0])

    spread(coded.code_words(paging), thread, four)
