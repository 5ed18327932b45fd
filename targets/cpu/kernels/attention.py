"""mla_absorbed: attention in latent space, where the cache row is both the one key and the one value of all heads.

A token attends to positions 0 … its own. Up to sixteen heads share each pass over the cache. Scores have the heads in
the lanes, so softmax, which runs online (Milakov and Gimelshein 2018, arXiv 1805.02867) over blocks of slots, needs no
horizontal step. When there are few tokens and heads, the context is cut into chunks whose partial results are merged
by their maxima and sums (Flash-Decoding, Dao and others 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.targets import tir as T
from dsv3c.targets.calls.attention import MlaAbsorbed
from dsv3c.targets.calls.operands import CONTROL
from dsv3c.targets.cpu.intrinsics import DOT2, PREFETCH_IR, bf16_pair_to_f32, f32_to_bf16_pair, prefetch, splat
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels import cache_codes
from dsv3c.targets.cpu.kernels.cache import cache_row
from dsv3c.targets.cpu.kernels.frame import PARALLEL_WORK, Buffer, Operand, PrimFunc, local, loop, prim_func
from dsv3c.targets.cpu.kernels.softmax import LOWEST
from dsv3c.targets.cpu.kernels.vector import WIDTH, columns, exp, f32, load, load_f32, store, transpose

Expr = Any

PAGE = 16  # slots that are contiguous in memory; pages hold a multiple of them
BLOCK = 64  # slots of one softmax step
PARTS = 16  # partial results at least, so tasks at most


def operands(spec: MlaAbsorbed) -> tuple[Operand, ...]:
    m, paging = spec.rows.maximum, spec.paging
    return (
        CONTROL,
        Operand("q_latent", "f32", m * spec.heads * paging.rank),
        Operand("q_pe", "f32", m * spec.heads * paging.d),
        paging.cache,
        *paging.operands(m),
        Operand("y", "f32", m * spec.heads * paging.rank),
        Operand("scratch", "f32", parts(spec.heads) * _Part.of(spec, 0).size),
    )


def tiles_of(heads: int) -> int:
    """Groups of at most sixteen heads."""
    return -(-heads // LANES)


def parts(heads: int) -> int:
    """Partial results that the scratch operand holds."""
    return max(PARTS, 4 * tiles_of(heads))


@dataclass(frozen=True)
class _Part:
    """Offsets of one task's slice of the scratch operand, in float32 elements. Rows of sixteen hold heads."""

    query: Expr  # [width, 16], or bfloat16 pairs [width/2, 16]
    scores: Expr  # [BLOCK + 1, 16], then the probabilities: float32 (times the factors, if any), or bfloat16 pairs
    largest: Expr  # [16] of the unscaled scores
    total: Expr  # [16]
    factor: Expr  # [16]
    sums: Expr  # [heads of a tile, rank]
    rows: Expr  # [PAGE, width]: of a coded cache the rows that are scored, as numbers
    factors: Expr  # [BLOCK]: of their latents, see `coded`
    size: int

    @classmethod
    def of(cls, spec: MlaAbsorbed, index: Expr) -> _Part:
        width, rank = spec.paging.width, spec.paging.rank
        sizes = [width * LANES, (BLOCK + 1) * LANES, LANES, LANES, LANES, LANES * -(-rank // LANES) * LANES]
        sizes += [PAGE * width, BLOCK] if spec.paging.coded else [0, 0]
        size = sum(sizes)
        return cls(*[*(index * size + sum(sizes[:i]) for i in range(len(sizes))), size])


@dataclass(frozen=True)
class _Unit:
    """What the emission of one chunk of one token's context needs."""

    spec: MlaAbsorbed
    level: IsaLevel
    buffers: dict[str, Buffer]
    at: _Part
    token: Expr
    head: Expr  # the first
    heads: int

    @property
    def scratch(self) -> Buffer:
        return self.buffers["scratch"]

    @property
    def paired(self) -> bool:
        """Whether products take pairs of bfloat16."""
        paging = self.spec.paging
        whole = paging.rank % (2 * WIDTH) == 0 and paging.d % 2 == 0
        return self.level.dot2 is not None and paging.element == "bf16" and whole

    def page(self, slot: Expr) -> Expr:
        """Offset of the cache row of a slot, and of the PAGE rows from there on."""
        return cache_row(self.spec.paging, self.buffers["page_table"], self.buffers["sequence"][self.token], slot)

    def get(self, offset: Expr) -> Expr:
        return load(self.scratch, offset, LANES)

    def put(self, offset: Expr, value: Expr) -> None:
        store(self.scratch, offset, value, LANES)


def build(spec: MlaAbsorbed, level: IsaLevel) -> PrimFunc:
    """Parallel over tokens, head tiles and chunks of the context; then, where there are chunks, over heads."""
    paging = spec.paging
    assert paging.page_size % PAGE == 0, f"a page holds {paging.page_size} slots, which is no multiple of {PAGE}"
    tiles = tiles_of(spec.heads)
    tile = -(-spec.heads // tiles)
    slices = parts(spec.heads)

    def body(buffers: dict[str, Buffer]) -> None:
        parallel = spec.heads * paging.width * paging.pages * paging.page_size >= PARALLEL_WORK
        positions = buffers["positions"]
        tokens = T.bind(buffers["control"][spec.rows.index])
        items = T.bind(tokens * tiles)
        chunks = T.bind(T.max(T.floordiv(slices, T.max(items, 1)), 1))
        units = T.bind(items * chunks)

        def unit(index: Expr, part: Expr) -> tuple[_Unit, Expr]:
            item = T.bind(T.floordiv(index, chunks))
            token = T.bind(T.floordiv(item, tiles))
            # Tiles overlap when they do not divide the heads: a head done twice gets the same result twice.
            head = T.bind(T.min(T.floormod(item, tiles) * tile, spec.heads - tile))
            return _Unit(spec, level, buffers, _Part.of(spec, part), token, head, tile), T.floormod(index, chunks)

        with loop(T.bind(T.min(units, slices)), parallel) as part:
            with T.serial(0, T.floordiv(units - part + (slices - 1), slices)) as step:
                one, chunk = unit(T.bind(part + step * slices), part)
                context = T.bind(positions[one.token] + 1)
                used, length = _cut(context, chunks, level.tuning.context_chunk)
                start = T.bind(chunk * length)
                with T.If(start < context), T.Then():
                    _attend(one, start, T.bind(T.min(start + length, context)))
                    with T.If(used == 1), T.Then():
                        _write(one)
        longest = local("i32", 1)
        store(longest, 0, T.int32(0), 1)
        with T.If(chunks > 1), T.Then():
            with T.serial(0, tokens) as t:
                store(longest, 0, T.max(longest[0], positions[t] + 1), 1)
        with T.If(longest[0] > level.tuning.context_chunk), T.Then():
            with loop(T.bind(items * tile), parallel) as index:
                first = T.bind(T.floordiv(index, tile) * chunks)
                one, _ = unit(first, first)
                used, _ = _cut(T.bind(positions[one.token] + 1), chunks, level.tuning.context_chunk)
                with T.If(used > 1), T.Then():
                    _merge(one, T.bind(T.floormod(index, tile)), used, slices)

    return prim_func(operands(spec), body, DOT2[level.dot2].llvm + PREFETCH_IR if level.dot2 else "")


def _cut(context: Expr, chunks: Expr, worth: int) -> tuple[Expr, Expr]:
    """(chunks a context is cut into, at most `chunks` and of `worth` slots at least; slots of each, whole pages)."""
    wanted = T.bind(T.min(chunks, T.floordiv(context + (worth - 1), worth)))
    length = T.bind(T.floordiv(T.floordiv(context + wanted - 1, wanted) + (PAGE - 1), PAGE) * PAGE)
    return T.bind(T.floordiv(context + length - 1, length)), length


def _attend(unit: _Unit, start: Expr, end: Expr) -> None:
    """Slots start..end (start on a page) into the unit's part: sums relative to its largest score, and their total."""
    at = unit.at
    unit.put(at.largest, f32(LOWEST, LANES))
    unit.put(at.total, f32(0, LANES))
    _load_query(unit)
    with T.serial(0, unit.heads) as h:
        row = T.bind(at.sums + h * unit.spec.paging.rank)
        columns(unit.spec.paging.rank, lambda c, lanes: store(unit.scratch, row + c, f32(0, lanes), lanes))
    with T.serial(0, T.floordiv(end - start + (BLOCK - 1), BLOCK)) as block:
        first = T.bind(start + block * BLOCK)
        valid = T.bind(T.min(end - first, BLOCK))
        with T.serial(0, T.floordiv(valid + (PAGE - 1), PAGE)) as page:
            here = T.bind(first + page * PAGE)
            # A page is as many cache lines as a row has pairs: each step of the scores fetches one line of the next.
            following = unit.page(T.bind(T.min(here + PAGE, end - 1)))
            _score_page(unit, unit.page(here), following, T.bind(page * PAGE))
        _soften(unit, valid)
        _add_values(unit, first, valid)


def _load_query(unit: _Unit) -> None:
    """The query with its heads in the lanes, zeros where the tile has none."""
    paging, at = unit.spec.paging, unit.at
    row = T.bind(unit.token * unit.spec.heads + unit.head)
    for role, n, offset in (("q_latent", paging.rank, 0), ("q_pe", paging.d, paging.rank)):
        source = unit.buffers[role]
        starts = [T.bind((row + h) * n) for h in range(unit.heads)]
        if unit.paired:
            _load_pairs(unit, source, starts, n, at.query + offset // 2 * LANES)
            continue
        whole = n // LANES
        if whole:
            with T.serial(0, whole) as step:
                rows = [T.bind(load(source, start + step * LANES, LANES)) for start in starts]
                for i, column in enumerate(transpose(rows)):
                    unit.put(at.query + (offset + step * LANES + i) * LANES, column)
        if n % LANES:
            with T.serial(whole * LANES, n) as i:
                unit.put(at.query + (offset + i) * LANES, f32(0, LANES))
                for h, start in enumerate(starts):
                    store(unit.scratch, at.query + (offset + i) * LANES + h, source[start + i], 1)


def _load_pairs(unit: _Unit, source: Buffer, starts: list[Expr], n: int, out: Expr) -> None:
    """scratch[out + i*16 + h] = bfloat16 pair (q[h, 2i], q[h, 2i + 1])."""
    even, odd = list(range(0, 2 * LANES, 2)), list(range(1, 2 * LANES, 2))
    whole = n // (2 * LANES)
    if whole:
        with T.serial(0, whole) as step:
            rows = []
            for start in starts:
                halves = [T.bind(load(source, start + step * (2 * LANES) + part, LANES)) for part in (0, LANES)]
                pair = f32_to_bf16_pair(T.bind(T.Shuffle(halves, even)), T.bind(T.Shuffle(halves, odd)), LANES)
                rows.append(T.bind(T.reinterpret("float32x16", pair)))
            for i, column in enumerate(transpose(rows)):
                unit.put(out + (step * LANES + i) * LANES, column)
    if n % (2 * LANES):
        with T.serial(whole * LANES, n // 2) as i:
            unit.put(out + i * LANES, f32(0, LANES))
            for h, start in enumerate(starts):
                pair = f32_to_bf16_pair(source[start + 2 * i], source[start + 2 * i + 1], 1)
                store(unit.scratch, out + i * LANES + h, T.reinterpret("float32", pair), 1)


def _score_page(unit: _Unit, base: Expr, following: Expr, first: Expr) -> None:
    """Scores of the PAGE slots whose rows start at `base`, from the block's slot `first` on; `following` come next.

    Slots past the context get whatever the page holds there; nothing reads their scores.
    """
    paging, lanes, query, out = unit.spec.paging, unit.level.lanes, unit.at.query, unit.at.scores + first * LANES
    width, source = paging.width, unit.scratch if paging.coded else unit.buffers["cache"]
    together = PAGE if lanes == LANES else 4  # slots at a time: as many sums as registers hold
    pairs = paging.element == "bf16" and width % 2 == 0

    with T.serial(0, PAGE // together) as step:
        rows = T.bind(base + T.Cast("int64", step) * (together * paging.stride))
        if paging.coded:
            rows = _decoded(unit, rows, together, T.bind(first + step * together))
        sums = [local("f32", LANES) for _ in range(together)]
        for total in sums:
            for part in range(0, LANES, lanes):
                store(total, part, f32(0, lanes), lanes)

        def accumulate(column: Expr, values: list[Expr], sums: list[Buffer] = sums) -> None:
            for part in range(0, LANES, lanes):
                q = T.bind(load(unit.scratch, query + column * LANES + part, lanes))
                for total, value in zip(sums, values, strict=True):
                    store(total, part, q * value + load(total, part, lanes), lanes)

        with T.serial(0, width // 2 if pairs else width) as i:
            at = [T.bind(rows + (slot * width + i * (2 if pairs else 1))) for slot in range(together)]
            if unit.paired:
                if together == PAGE:
                    prefetch(unit.buffers["cache"], following + T.Cast("int64", i) * (2 * PAGE))
                words = [T.bind(T.reinterpret("float32", load(unit.buffers["cache"], where, 2))) for where in at]
                for part in range(0, LANES, lanes):
                    q = T.bind(load(unit.scratch, query + i * LANES + part, lanes))
                    for total, word in zip(sums, words, strict=True):
                        store(total, part, _dot2(unit, load(total, part, lanes), q, word), lanes)
            elif pairs:
                words = [T.reinterpret("uint32", load(unit.buffers["cache"], where, 2)) for where in at]
                halves = [bf16_pair_to_f32(T.bind(splat(word, lanes)), lanes) for word in words]
                for half in range(2):
                    accumulate(i * 2 + half, [T.bind(both[half]) for both in halves])
            else:
                values = [load_f32(source, where, 1, paging.element) for where in at]
                accumulate(i, [T.bind(splat(value, lanes)) for value in values])
        for i, total in enumerate(sums):
            for part in range(0, LANES, lanes):
                where = out + (step * together + i) * LANES + part
                store(unit.scratch, where, load(total, part, lanes), lanes)


def _decoded(unit: _Unit, rows: Expr, count: int, slot: Expr) -> Expr:
    """Where `count` coded rows, of the block's slots from `slot` on, lie in scratch as numbers: each is scored with all
    heads, and a scalar of memory goes into all lanes at no cost. Notes the factors of their latents."""
    paging, at = unit.spec.paging, unit.at
    cache, scratch = unit.buffers["cache"], unit.scratch
    with T.serial(0, count) as i:
        row = T.bind(rows + T.Cast("int64", i) * paging.stride)
        for part, (_, first) in enumerate(cache_codes.parts(paging)):
            cache_codes.decode_row(cache, row, part, paging, scratch, T.bind(at.rows + i * paging.width + first))
        store(scratch, at.factors + slot + i, cache_codes.factor(cache, row, 0, paging), 1)
    return at.rows


def _dot2(unit: _Unit, acc: Expr, vector: Expr, word: Expr) -> Expr:
    """acc + vector . word: a vector of pairs of bfloat16 with one pair, which comes as a float32."""
    assert unit.level.dot2 is not None
    return DOT2[unit.level.dot2].emit(acc, vector, splat(word, unit.level.lanes))


def _soften(unit: _Unit, valid: Expr) -> None:
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


def _add_values(unit: _Unit, first: Expr, valid: Expr) -> None:
    """sums = sums * factor + probabilities . latent rows of the `valid` slots from `first` on."""
    group = 8  # heads at a time: as many sums as registers hold
    steps = 2 if unit.paired else 1  # slots that one product takes
    vectors = 2 if unit.paired or unit.level.lanes == LANES else 1

    def column(at: Expr, lanes: int, vectors: int) -> None:
        for low in range(0, unit.heads, group):
            heads = range(low, min(low + group, unit.heads))
            _value_tile(unit, first, valid, at, lanes, vectors, heads, steps)

    rank, stride = unit.spec.paging.rank, vectors * unit.level.lanes
    if rank // stride:
        with T.serial(0, rank // stride) as step:
            column(step * stride, unit.level.lanes, vectors)
    columns(rank, lambda at, lanes: column(at, lanes, 1), start=rank // stride * stride)


def _value_tile(
    unit: _Unit, first: Expr, valid: Expr, at: Expr, lanes: int, vectors: int, heads: range, steps: int
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
        rows = unit.page(first + page * PAGE)
        here = T.bind(T.min(valid - page * PAGE, PAGE))
        with T.serial(0, T.floordiv(here + (steps - 1), steps)) as i:
            slots = [T.Cast("int64", T.min(i * steps + j, here - 1)) for j in range(steps)]
            values = _values(unit, [T.bind(rows + slot * paging.stride + at) for slot in slots], lanes, vectors)
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


def _values(unit: _Unit, rows: list[Expr], lanes: int, vectors: int) -> list[Expr]:
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


def _write(unit: _Unit) -> None:
    """y of the unit's heads from its part alone."""
    rank = unit.spec.paging.rank
    with T.serial(0, unit.heads) as h:
        row, out = T.bind(unit.at.sums + h * rank), _out(unit, h)
        inverse = T.bind(f32(1) / unit.scratch[unit.at.total + h])

        def normalise(at: Expr, lanes: int) -> None:
            store(unit.buffers["y"], out + at, load(unit.scratch, row + at, lanes) * splat(inverse, lanes), lanes)

        columns(rank, normalise)


def _out(unit: _Unit, h: Expr) -> Expr:
    return T.bind((unit.token * unit.spec.heads + unit.head + h) * unit.spec.paging.rank)


def _merge(unit: _Unit, h: Expr, used: Expr, slices: int) -> None:
    """y of head `h` from the `used` parts that start with the unit's own."""
    scratch, rank, size, out = unit.scratch, unit.spec.paging.rank, unit.at.size, _out(unit, h)
    weights, largest, total = local("f32", slices), local("f32", 1), local("f32", 1)
    store(largest, 0, f32(LOWEST), 1)
    store(total, 0, f32(0), 1)
    with T.serial(0, used) as i:
        store(largest, 0, T.max(largest[0], scratch[unit.at.largest + h + i * size]), 1)
    with T.serial(0, used) as i:
        weight = T.bind(exp((scratch[unit.at.largest + h + i * size] - largest[0]) * f32(unit.spec.scale), 1))
        store(weights, i, weight, 1)
        store(total, 0, total[0] + weight * scratch[unit.at.total + h + i * size], 1)
    inverse = T.bind(f32(1) / total[0])
    row = T.bind(unit.at.sums + h * rank)

    def column(at: Expr, lanes: int) -> None:
        acc = local("f32", WIDTH)
        store(acc, 0, f32(0, lanes), lanes)
        with T.serial(0, used) as i:
            weight = splat(weights[i], lanes)
            store(acc, 0, load(scratch, row + i * size + at, lanes) * weight + load(acc, 0, lanes), lanes)
        store(unit.buffers["y"], out + at, load(acc, 0, lanes) * splat(inverse, lanes), lanes)

    columns(rank, column)
