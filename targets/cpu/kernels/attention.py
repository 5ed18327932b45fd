"""mla_absorbed: attention in latent space, where the cache row is both the one key and the one value of all heads.

A token attends to positions 0 … its own, in mla_sparse to those that are chosen of them, whose rows are read where they
lie: the slots of a context are then places in that choice. Up to sixteen heads share each pass over the cache. Scores
have the heads in the lanes, so softmax, which runs online (Milakov and Gimelshein 2018, arXiv 1805.02867) over blocks
of slots, needs no horizontal step. A long context is cut into chunks whose partial results are merged by their maxima
and sums (Flash-Decoding, Dao and others 2023). Where it is cut depends on its length alone, so a token gets the same
bits whatever is computed beside it: few tokens spread their chunks over the threads, many take a thread each.
"""

from __future__ import annotations

from typing import Any

from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.targets import tir as T
from dsv3c.targets.calls.attention import MlaAbsorbed
from dsv3c.targets.calls.operands import CONTROL
from dsv3c.targets.calls.sparse import MlaSparse, mla_sparse_operands
from dsv3c.targets.cpu.intrinsics import DOT2, PREFETCH_IR, f32_to_bf16_pair, prefetch, splat
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels import attention_chunks as chunks
from dsv3c.targets.cpu.kernels import cache_codes
from dsv3c.targets.cpu.kernels.attention_unit import BLOCK, PAGE, Part, Spec, Unit, parts, tiles_of
from dsv3c.targets.cpu.kernels.frame import (
    PARALLEL_WORK,
    Buffer,
    Operand,
    PrimFunc,
    local,
    loop,
    prim_func,
    settled,
)
from dsv3c.targets.cpu.kernels.queries import load_queries, load_query_pairs
from dsv3c.targets.cpu.kernels.softmax import LOWEST
from dsv3c.targets.cpu.kernels.vector import WIDTH, columns, exp, f32, load, load_f32, store

Expr = Any

LINE = 16  # words of 32 bits in a line of the first-level cache


def operands(spec: MlaAbsorbed) -> tuple[Operand, ...]:
    m, paging = spec.rows.maximum, spec.paging
    return (
        CONTROL,
        Operand("q_latent", "f32", m * spec.heads * paging.rank),
        Operand("q_pe", "f32", m * spec.heads * paging.d),
        paging.cache,
        *paging.operands(m),
        Operand("y", "f32", m * spec.heads * paging.rank),
        Operand("scratch", "f32", parts(spec.heads) * Part.of(spec, 0).size),
    )


def sparse_operands(spec: MlaSparse) -> tuple[Operand, ...]:
    return mla_sparse_operands(spec, parts(spec.heads) * Part.of(spec, 0).size)


def build(spec: Spec, level: IsaLevel) -> PrimFunc:
    """Items are tokens times head tiles. Where there are fewer than parts, rounds of items whose chunks have a task
    each; else tasks of whole contexts."""
    paging = spec.paging
    assert paging.page_size % PAGE == 0, f"a page holds {paging.page_size} slots, which is no multiple of {PAGE}"
    tiles = tiles_of(spec.heads)
    tile = -(-spec.heads // tiles)
    slices = parts(spec.heads)

    def body(buffers: dict[str, Buffer]) -> None:
        parallel = spec.heads * paging.width * paging.pages * paging.page_size >= PARALLEL_WORK
        positions = buffers["positions"]

        def context_of(token: Expr) -> Expr:
            context = positions[token] + 1
            return T.min(context, spec.k) if isinstance(spec, MlaSparse) else context

        tokens = T.bind(buffers["control"][spec.rows.index])
        items = T.bind(tokens * tiles)
        most, worth = slices // tiles, level.tuning.context_chunk
        shared = local("i32", 2)  # tasks of an item (first the longest context), items of a round
        store(shared, 0, T.int32(1), 1)
        store(shared, 1, items, 1)
        with T.If(items < slices), T.Then():
            with T.serial(0, tokens) as t:
                store(shared, 0, T.max(shared[0], context_of(t)), 1)
            store(shared, 0, chunks.wanted(shared[0], most, worth), 1)
            store(shared, 1, T.floordiv(slices, shared[0]), 1)
        apart, at_once = T.bind(shared[0]), T.bind(shared[1])

        def unit(item: Expr, part: Expr) -> Unit:
            token = T.bind(T.floordiv(item, tiles))
            # Tiles overlap when they do not divide the heads: a head done twice gets the same result twice.
            head = T.bind(T.min(T.floormod(item, tiles) * tile, spec.heads - tile))
            token, head = settled(token, head)
            chosen = local("i64", BLOCK + PAGE) if isinstance(spec, MlaSparse) else None
            return Unit(spec, level, buffers, Part.of(spec, part), token, head, tile, chosen)

        def cut(one: Unit) -> tuple[Expr, Expr, Expr]:
            context = T.bind(context_of(one.token))
            return context, *settled(*chunks.cut(context, most, worth))

        with T.serial(0, T.floordiv(items + at_once - 1, T.max(at_once, 1))) as turn:
            first = T.bind(turn * at_once)
            here = T.bind(T.min(items - first, at_once))
            tasks = T.bind(here * apart)
            with loop(T.bind(T.min(tasks, slices)), parallel) as part:
                with T.serial(0, T.floordiv(tasks - part + (slices - 1), slices)) as step:
                    index = T.bind(part + step * slices)
                    one = unit(T.bind(first + T.floordiv(index, apart)), part)
                    context, used, length = cut(one)
                    begin = T.bind(T.floormod(index, apart))
                    last = T.bind(T.Select(apart > 1, T.min(begin + 1, used), used))
                    with T.serial(0, T.max(last - begin, 0)) as i:
                        start = T.bind((begin + i) * length)
                        with T.If(i == 0), T.Then():
                            _load_query(one)
                        _attend(one, *settled(start, T.min(start + length, context)))
                        with T.If(T.And(used > 1, apart == 1)), T.Then():
                            chunks.fold(one, T.bind(i == 0))
                    with T.If(T.And(used == 1, begin == 0)), T.Then():
                        chunks.write(one, one.at.sums, one.at.total)
                    with T.If(T.And(used > 1, apart == 1)), T.Then():
                        chunks.write(one, one.at.merged, one.at.merged_total)
            with T.If(apart > 1), T.Then(), loop(T.bind(here * tile), parallel) as index:
                item = T.bind(T.floordiv(index, tile))
                one = unit(T.bind(first + item), T.bind(item * apart))
                _, used, _ = cut(one)
                with T.If(used > 1), T.Then():
                    chunks.merge(one, T.bind(T.floormod(index, tile)), used, most)

    given = sparse_operands(spec) if isinstance(spec, MlaSparse) else operands(spec)
    return prim_func(given, body, (DOT2[level.dot2].llvm if level.dot2 else "") + PREFETCH_IR)


def _attend(unit: Unit, start: Expr, end: Expr) -> None:
    """Slots start..end (start on a page) into the unit's part: sums relative to its largest score, and their total."""
    at = unit.at
    unit.put(at.largest, f32(LOWEST, LANES))
    unit.put(at.total, f32(0, LANES))
    with T.serial(0, unit.heads) as h:
        row = T.bind(at.sums + h * unit.spec.paging.rank)
        columns(unit.spec.paging.rank, lambda c, lanes: store(unit.scratch, row + c, f32(0, lanes), lanes))
    with T.serial(0, T.floordiv(end - start + (BLOCK - 1), BLOCK)) as block:
        first = T.bind(start + block * BLOCK)
        valid = T.bind(T.min(end - first, BLOCK))
        unit.find_chosen(first, end)
        with T.serial(0, T.floordiv(valid + (PAGE - 1), PAGE)) as page:
            here, slot = T.bind(first + page * PAGE), T.bind(page * PAGE)
            if unit.chosen is not None:
                _score_page(unit, T.int64(0), T.int64(0), slot)
            else:
                following = unit.page(T.bind(T.min(here + PAGE, end - 1)))
                _score_page(unit, unit.page(here), following, slot)
        _soften(unit, valid)
        _add_values(unit, first, valid)


def _load_query(unit: Unit) -> None:
    """The query with its heads in the lanes, zeros where the tile has none."""
    paging, at = unit.spec.paging, unit.at
    row = T.bind(unit.token * unit.spec.heads + unit.head)
    for role, n, offset in (("q_latent", paging.rank, 0), ("q_pe", paging.d, paging.rank)):
        source = unit.buffers[role]
        starts = [T.bind((row + h) * n) for h in range(unit.heads)]
        if unit.paired:
            load_query_pairs(source, starts, n, unit.scratch, at.query + offset // 2 * LANES)
        else:
            load_queries(source, starts, n, unit.scratch, at.query + offset * LANES)


def _score_page(unit: Unit, base: Expr, following: Expr, first: Expr) -> None:
    """Scores of the PAGE slots whose rows start at `base`, from the block's slot `first` on; those from `following` on
    come next and are fetched meanwhile. Of rows that are chosen neither counts.

    Slots past the context get whatever the page holds there; nothing reads their scores.
    """
    paging, lanes, query, out = unit.spec.paging, unit.level.lanes, unit.at.query, unit.at.scores + first * LANES
    width, source = paging.width, unit.scratch if unit.decodes else unit.buffers["cache"]
    together = PAGE if lanes == LANES else 4  # slots at a time: as many sums as registers hold
    if unit.chosen is not None and not unit.decodes:
        together = min(together, PAGE // 2)  # and addresses
    word = 2 if unit.paired else 1  # columns
    words = width // word

    with T.serial(0, PAGE // together) as step:
        behind, begin = T.bind(T.Cast("int64", step) * (together * paging.stride)), T.bind(first + step * together)
        rows, ahead = T.bind(base + behind), T.bind(following + behind)
        if unit.decodes:
            rows = _decoded(unit, rows, ahead, together, begin)
        apart = unit.chosen is not None and not unit.decodes
        starts = [T.bind(unit.row(rows, i, begin + i)) if apart else rows + i * width for i in range(together)]
        sums = [local("f32", LANES) for _ in range(together)]
        for total in sums:
            for part in range(0, LANES, lanes):
                store(total, part, f32(0, lanes), lanes)

        def multiply(i: Expr) -> None:
            at = [T.bind(start + i * word) for start in starts]
            if unit.paired:
                values = [T.bind(T.reinterpret("float32", load(source, where, 2))) for where in at]
            else:
                values = [T.bind(splat(load(source, where, 1), lanes)) for where in at]
            for part in range(0, LANES, lanes):
                q = T.bind(load(unit.scratch, query + i * LANES + part, lanes))
                for total, value in zip(sums, values, strict=True):
                    acc = load(total, part, lanes)
                    store(total, part, _dot2(unit, acc, q, value) if unit.paired else q * value + acc, lanes)

        if unit.decodes:
            with T.serial(0, words) as i:
                multiply(i)
        else:
            with T.serial(0, -(-words // LINE)) as line:
                for i in range(together):
                    place = unit.row(ahead, T.int32(i), begin + (PAGE + i))
                    prefetch(source, place + T.Cast("int64", line) * (LINE * word))
                with T.serial(0, LINE if words % LINE == 0 else T.bind(T.min(LINE, words - line * LINE))) as i:
                    multiply(T.bind(line * LINE + i))
        for i, total in enumerate(sums):
            for part in range(0, LANES, lanes):
                where = out + (step * together + i) * LANES + part
                store(unit.scratch, where, load(total, part, lanes), lanes)


def _decoded(unit: Unit, rows: Expr, ahead: Expr, count: int, slot: Expr) -> Expr:
    """Where `count` rows, of the block's slots from `slot` on, lie in scratch as float32; fetches as many from `ahead`
    on. Of codes it notes the factors of their latents."""
    paging, at = unit.spec.paging, unit.at
    cache, scratch = unit.buffers["cache"], unit.scratch
    with T.serial(0, count) as i:
        row, out = T.bind(unit.row(rows, i, slot + i)), T.bind(at.rows + i * paging.width)
        after = T.bind(unit.row(ahead, i, slot + i + PAGE))
        if paging.coded:
            for byte in range(0, paging.row_bytes, 4 * LINE):
                prefetch(cache, after + byte)
            for part, (_, first) in enumerate(cache_codes.parts(paging)):
                cache_codes.decode_row(cache, row, part, paging, scratch, out + first)
            store(scratch, at.factors + slot + i, cache_codes.factor(cache, row, 0, paging), 1)
        else:

            def column(c: Expr, lanes: int, row: Expr = row, after: Expr = after) -> None:
                prefetch(cache, after + c)
                store(scratch, out + c, load_f32(cache, row + c, lanes, paging.element), lanes)

            columns(paging.width, column)
    return at.rows


def _dot2(unit: Unit, acc: Expr, vector: Expr, word: Expr) -> Expr:
    """acc + vector . word: a vector of pairs of bfloat16 with one pair, which comes as a float32."""
    assert unit.level.dot2 is not None
    return DOT2[unit.level.dot2].emit(acc, vector, splat(word, unit.level.lanes))


def _soften(unit: Unit, valid: Expr) -> None:
    """Scores of the first `valid` slots into probabilities relative to the largest score so far."""
    at, scale = unit.at, f32(unit.spec.scale, LANES)
    largest, total = local("f32", LANES), local("f32", LANES)
    before = T.bind(unit.get(at.largest))
    store(largest, 0, before, LANES)
    with T.serial(0, valid) as slot:
        store(largest, 0, T.max(load(largest, 0, LANES), unit.get(at.scores + slot * LANES)), LANES)
    after = T.bind(load(largest, 0, LANES))
    factor = T.bind(exp((before - after) * scale, LANES))
    unit.put(at.largest, after)
    unit.put(at.factor, factor)
    store(total, 0, unit.get(at.total) * factor, LANES)

    def probability(slot: Expr) -> Expr:
        value = T.bind(exp((unit.get(at.scores + slot * LANES) - after) * scale, LANES))
        store(total, 0, load(total, 0, LANES) + value, LANES)
        return value

    if unit.paired:
        unit.put(at.scores + valid * LANES, f32(LOWEST, LANES))  # the other half of the last pair
        with T.serial(0, T.floordiv(valid + 1, 2)) as i:
            pair = f32_to_bf16_pair(probability(i * 2), probability(i * 2 + 1), LANES)
            unit.put(at.scores + i * LANES, T.reinterpret("float32x16", pair))
        with T.If(T.floormod(valid, 2) == 1), T.Then():
            # exp is never 0, and products that round to odd (bfdot) would show the least addend.
            last = T.bind(at.scores + T.floordiv(valid, 2) * LANES)
            first = T.bitwise_and(T.reinterpret("uint32x16", unit.get(last)), splat(T.uint32(0xFFFF), LANES))
            unit.put(last, T.reinterpret("float32x16", first))
    else:
        with T.serial(0, valid) as slot:
            value = probability(slot)
            if unit.spec.paging.coded:  # once a slot, not once a column
                value = value * splat(unit.scratch[at.factors + slot], LANES)
            unit.put(at.scores + slot * LANES, value)
    unit.put(at.total, load(total, 0, LANES))


def _add_values(unit: Unit, first: Expr, valid: Expr) -> None:
    """sums = sums * factor + probabilities . latent rows of the `valid` slots from `first` on."""
    group, vectors = _value_registers(unit)
    steps = 2 if unit.paired else 1  # slots that one product takes

    def column(at: Expr, lanes: int, vectors: int) -> None:
        for low in range(0, unit.heads, group):
            heads = range(low, min(low + group, unit.heads))
            _value_tile(unit, first, valid, at, lanes, vectors, heads, steps)

    rank, stride = unit.spec.paging.rank, vectors * unit.level.lanes
    if rank // stride:
        with T.serial(0, rank // stride) as step:
            column(step * stride, unit.level.lanes, vectors)
    columns(rank, lambda at, lanes: column(at, lanes, 1), start=rank // stride * stride)


def _value_registers(unit: Unit) -> tuple[int, int]:
    """(heads, vectors of columns) whose sums are held at a time, beside the vectors of a row and a weight in all lanes.

    Each vector of a row serves all these heads and each weight all vectors, but AVX-512 takes weights from memory.
    """
    if unit.level.lanes == LANES and not unit.paired:
        return LANES, 1
    return (6, 2) if unit.level.lanes == 8 else (8, 2)  # of sixteen registers, and of 32


def _value_tile(
    unit: Unit, first: Expr, valid: Expr, at: Expr, lanes: int, vectors: int, heads: range, steps: int
) -> None:
    """`vectors` vectors of columns from `at` on, for some heads."""
    paging, part = unit.spec.paging, unit.at
    outs = [[part.sums + h * paging.rank + at + v * lanes for v in range(vectors)] for h in heads]
    sums = [[local("f32", WIDTH) for _ in range(vectors)] for _ in heads]
    for h, of_head, out in zip(heads, sums, outs, strict=True):
        factor = T.bind(splat(unit.scratch[part.factor + h], lanes))
        for total, where in zip(of_head, out, strict=True):
            store(total, 0, load(unit.scratch, where, lanes) * factor, lanes)

    with T.serial(0, T.floordiv(valid + (PAGE - 1), PAGE)) as page:
        rows = T.int64(0) if unit.chosen is not None else unit.page(first + page * PAGE)
        here = T.bind(T.min(valid - page * PAGE, PAGE))
        with T.serial(0, T.floordiv(here + (steps - 1), steps)) as i:
            slots = [T.bind(T.min(i * steps + j, here - 1)) for j in range(steps)]
            places = [T.bind(unit.row(rows, slot, page * PAGE + slot) + at) for slot in slots]
            values = _values(unit, places, lanes, vectors)
            weights = part.scores + (page * (PAGE // steps) + i) * LANES
            for h, of_head in zip(heads, sums, strict=True):
                weight = unit.scratch[weights + h]
                for total, value in zip(of_head, values, strict=True):
                    acc = load(total, 0, lanes)
                    done = _dot2(unit, acc, value, weight) if unit.paired else value * splat(weight, lanes) + acc
                    store(total, 0, done, lanes)
    for of_head, out in zip(sums, outs, strict=True):
        for total, where in zip(of_head, out, strict=True):
            store(unit.scratch, where, load(total, 0, lanes), lanes)


def _values(unit: Unit, rows: list[Expr], lanes: int, vectors: int) -> list[Expr]:
    """Vectors of latent columns: float32 of one row, before its factor, or bfloat16 pairs of two rows."""
    cache, element = unit.buffers["cache"], unit.spec.paging.element
    if unit.spec.paging.coded:
        return [T.bind(cache_codes.load_codes(cache, rows[0] + v * lanes, lanes, element)) for v in range(vectors)]
    if not unit.paired:
        return [T.bind(load_f32(cache, rows[0] + v * lanes, lanes, element)) for v in range(vectors)]
    both = [T.bind(load(cache, row, 2 * lanes)) for row in rows]
    out = []
    for v in range(vectors):
        order = [index for i in range(v * lanes, (v + 1) * lanes) for index in (i, 2 * lanes + i)]
        out.append(T.bind(T.reinterpret(f"float32x{lanes}", T.bind(T.Shuffle(both, order)))))
    return out
