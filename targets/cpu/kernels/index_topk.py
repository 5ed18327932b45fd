"""index_topk: the positions of a token's context with the k best scores.

A score is that of one key for all heads: sum over h of weights[h] * relu(q[h] . key). Products have the heads in the
lanes, tile by tile of sixteen, over a block of keys that lies in the first-level cache; only their sums over heads are
kept, as integers in the same order. The k best are those above the k-th, which three counts of 11 bits find, and of
those equal to it the first. So the time is linear in the context, and the choice does not depend on who computed what.

Tokens come in rounds, whose scores are kept at a time: their queries are turned, then all tasks score chunks of
contexts, then each token chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.targets import tir as T
from dsv3c.targets.calls.sparse import IndexTopk, index_topk_operands
from dsv3c.targets.cpu.intrinsics import DOT2, splat
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.cache import cache_row
from dsv3c.targets.cpu.kernels.frame import PARALLEL_WORK, Buffer, Operand, PrimFunc, local, loop, prim_func, stack
from dsv3c.targets.cpu.kernels.queries import load_queries, load_query_pairs
from dsv3c.targets.cpu.kernels.vector import columns, f32, load, load_f32, store, transpose

Expr = Any

BLOCK = 32  # keys that are scored at a time; pages hold a multiple of PAGE
PAGE = 16  # slots that are contiguous in memory
CHUNK = 256  # keys of a task, a multiple of BLOCK
ROUND = 16  # tokens whose scores are kept
_COUNTS = 2048  # of 11 bits each


@dataclass(frozen=True)
class Part:
    """Offsets of what the scratch operand has of one token of a round, in elements."""

    query: Expr  # [tiles, width, 16], or bfloat16 pairs [tiles, width/2, 16]
    weights: Expr  # [tiles, 16], 0 for heads that there are not
    scores: Expr  # [context], as integers in the order of the scores
    size: int

    @classmethod
    def of(cls, spec: IndexTopk, index: Expr) -> Part:
        paging, heads = spec.paging, _tiles(spec) * LANES
        sizes = [paging.width * heads, heads, paging.pages * paging.page_size + BLOCK]
        size = sum(sizes)
        return cls(*[*(index * size + sum(sizes[:i]) for i in range(len(sizes))), size])


def _tiles(spec: IndexTopk) -> int:
    return -(-spec.heads // LANES)


def operands(spec: IndexTopk) -> tuple[Operand, ...]:
    return index_topk_operands(spec, min(ROUND, spec.rows.maximum) * Part.of(spec, 0).size)


def build(spec: IndexTopk, level: IsaLevel) -> PrimFunc:
    paging, tiles = spec.paging, _tiles(spec)
    assert paging.page_size % PAGE == 0, f"a page holds {paging.page_size} slots, which is no multiple of {PAGE}"
    paired = level.dot2 is not None and paging.element == "bf16" and paging.width % (2 * LANES) == 0

    def body(buffers: dict[str, Buffer]) -> None:
        parallel = spec.heads * paging.width * paging.pages * paging.page_size >= PARALLEL_WORK
        positions = buffers["positions"]
        tokens = T.bind(buffers["control"][spec.rows.index])
        with T.serial(0, T.floordiv(tokens + (ROUND - 1), ROUND)) as turn:
            first = T.bind(turn * ROUND)
            here = T.bind(T.min(tokens - first, ROUND))
            longest = local("i32", 1)  # context of which not all is chosen
            store(longest, 0, T.int32(0), 1)
            with T.serial(0, here) as i:
                context = T.bind(positions[first + i] + 1)
                with T.If(context > spec.k), T.Then():
                    store(longest, 0, T.max(longest[0], context), 1)
            chunks = T.bind(T.floordiv(longest[0] + (CHUNK - 1), CHUNK))

            with T.If(chunks > 0), T.Then():
                with loop(T.bind(here * tiles), parallel) as index:
                    token = T.bind(T.floordiv(index, tiles))
                    tile = T.bind(index - token * tiles)
                    _load_query(spec, buffers, Part.of(spec, token), T.bind(first + token), tile, paired)
                with loop(T.bind(here * chunks), parallel) as index:
                    chunk = T.bind(T.floordiv(index, here))  # outside: the longest contexts alone have the last chunks
                    token = T.bind(index - chunk * here)
                    context = T.bind(positions[first + token] + 1)
                    start = T.bind(chunk * CHUNK)
                    end = T.bind(T.min(start + CHUNK, context))
                    with T.If(T.And(context > spec.k, start < end)), T.Then():
                        one = _Unit(spec, level, buffers, Part.of(spec, token), T.bind(first + token), paired)
                        one.score(start, end)
            with loop(here, parallel) as token:
                _choose(spec, buffers, Part.of(spec, token), T.bind(first + token))

    return prim_func(operands(spec), body, DOT2[level.dot2].llvm if level.dot2 else "")


def _load_query(spec: IndexTopk, buffers: dict[str, Buffer], at: Part, token: Expr, tile: Expr, paired: bool) -> None:
    """A tile's queries with their heads in the lanes, and its weights."""
    width, heads, scratch, source = spec.paging.width, spec.heads, buffers["scratch"], buffers["q"]
    numbers = [T.bind(T.min(tile * LANES + h, heads - 1)) for h in range(LANES)]
    starts = [T.bind((token * heads + number) * width) for number in numbers]
    for h, number in enumerate(numbers):
        weight = T.Select(tile * LANES + h < heads, buffers["weights"][token * heads + number], f32(0))
        store(scratch, at.weights + tile * LANES + h, weight, 1)
    out = T.bind(at.query + tile * (width * LANES))
    into_lanes = load_query_pairs if paired else load_queries
    into_lanes(source, starts, width, scratch, out)


@dataclass(frozen=True)
class _Unit:
    """What the emission of one chunk of one token's context needs."""

    spec: IndexTopk
    level: IsaLevel
    buffers: dict[str, Buffer]
    at: Part
    token: Expr
    paired: bool

    def score(self, start: Expr, end: Expr) -> None:
        """Scores of the positions start..end; start is a multiple of a block."""
        keys = None if self.paired else stack("f32", 1, BLOCK * self.spec.paging.width)
        sums = stack("f32", LANES, BLOCK)
        with T.serial(0, T.floordiv(end - start + (BLOCK - 1), BLOCK)) as block:
            first = T.bind(start + block * BLOCK)
            if keys is not None:
                self._decode(keys, first, end)
            with T.serial(0, _tiles(self.spec)) as tile:
                self._add_tile(keys, sums, first, end, tile)
            for page in range(0, BLOCK, PAGE):
                total = f32(0, LANES)
                for column in transpose([T.bind(sums[page + i]) for i in range(PAGE)]):
                    total = T.bind(total + column)
                bits = T.reinterpret("float32x16", _ordered(total))
                store(self.buffers["scratch"], self.at.scores + first + page, bits, LANES)

    def _row(self, position: Expr) -> Expr:
        return cache_row(self.spec.paging, self.buffers["page_table"], self.buffers["sequence"][self.token], position)

    def _decode(self, keys: Buffer, first: Expr, end: Expr) -> None:
        """A block of keys as numbers; behind the context the last one again."""
        width, element = self.spec.paging.width, self.spec.paging.element
        with T.serial(0, BLOCK) as i:
            row = self._row(T.bind(T.min(first + i, end - 1)))

            def column(at: Expr, lanes: int, row: Expr = row, i: Expr = i) -> None:
                store(keys, i * width + at, load_f32(self.buffers["cache"], row + at, lanes, element), lanes)

            columns(width, column)

    def _add_tile(self, keys: Buffer | None, sums: Buffer, first: Expr, end: Expr, tile: Expr) -> None:
        """sums[key] = or += weights * relu(query . key), of a tile of heads."""
        width, lanes, scratch = self.spec.paging.width, self.level.lanes, self.buffers["scratch"]
        together = PAGE if lanes == LANES else 4  # keys at a time: as many sums as registers hold
        steps = width // 2 if self.paired else width
        query = T.bind(self.at.query + tile * (width * LANES))
        weights = T.bind(load(scratch, self.at.weights + tile * LANES, LANES))
        with T.serial(0, BLOCK // together) as group:
            begin = T.bind(group * together)
            products = [local("f32", LANES) for _ in range(together)]
            for product in products:
                for part in range(0, LANES, lanes):
                    store(product, part, f32(0, lanes), lanes)
            # A group lies in one page; past the context it is that of the last key, whose scores nothing reads.
            last = T.floordiv(end - 1, together) * together
            row = self._row(T.bind(T.min(first + begin, last))) if self.paired else None
            with T.serial(0, steps) as i:
                queries = [T.bind(load(scratch, query + i * LANES + part, lanes)) for part in range(0, LANES, lanes)]
                for number, product in enumerate(products):
                    key = self._key(keys, row, begin + number, number, i)
                    for part, q in zip(range(0, LANES, lanes), queries, strict=True):
                        acc = load(product, part, lanes)
                        store(product, part, self._multiplied(acc, q, key), lanes)
            for number, product in enumerate(products):
                value = T.max(load(product, 0, LANES), f32(0, LANES)) * weights
                before = T.Select(tile == 0, f32(0, LANES), sums[begin + number])
                T.buffer_store(sums, before + value, [begin + number])

    def _key(self, keys: Buffer | None, row: Expr, slot: Expr, number: int, i: Expr) -> Expr:
        """Column i of a key, or its i-th pair, in all lanes."""
        if keys is not None:
            return T.bind(splat(keys[slot * self.spec.paging.width + i], self.level.lanes))
        at = row + (number * self.spec.paging.width + i * 2)
        return T.bind(splat(T.reinterpret("float32", load(self.buffers["cache"], at, 2)), self.level.lanes))

    def _multiplied(self, acc: Expr, q: Expr, key: Expr) -> Expr:
        if not self.paired:
            return q * key + acc
        assert self.level.dot2 is not None
        return DOT2[self.level.dot2].emit(acc, q, key)


def _ordered(scores: Expr) -> Expr:
    """Integers without a sign in the order of sixteen scores; both zeros are the same one."""
    bits = T.bind(T.reinterpret("uint32x16", T.bind(T.Select(scores == f32(0, LANES), f32(0, LANES), scores))))
    high = splat(T.uint32(1 << 31), LANES)
    # The sign bit in all bits of a negative one, and the highest bit of the others.
    negative = T.reinterpret("uint32x16", T.shift_right(T.reinterpret("int32x16", bits), splat(T.int32(31), LANES)))
    return T.bitwise_xor(bits, T.bitwise_or(negative, high))


def _choose(spec: IndexTopk, buffers: dict[str, Buffer], at: Part, token: Expr) -> None:
    """The best positions of a token whose scores are there."""
    y, scratch = buffers["y"], buffers["scratch"]
    context, out = T.bind(buffers["positions"][token] + 1), T.bind(token * spec.k)

    def score(i: Expr) -> Expr:
        return T.bind(T.reinterpret("uint32", scratch[at.scores + i]))

    with T.If(context <= spec.k):
        with T.Then():
            with T.serial(0, spec.k) as i:
                store(y, out + i, T.Select(i < context, i, -1), 1)
        with T.Else():
            counts, state = stack("i32", 1, _COUNTS), local("i32", 2)
            worst = local("u32", 1)  # the bits of the k-th best that are known
            store(state, 0, T.int32(spec.k), 1)  # how many are still to be chosen
            store(worst, 0, T.uint32(0), 1)
            for shift, bits in ((21, 11), (10, 11), (0, 10)):
                _count(counts, 1 << bits)
                with T.serial(0, context) as i:
                    value = score(i)
                    place = T.bitwise_and(T.shift_right(value, T.uint32(shift)), T.uint32((1 << bits) - 1))
                    known = T.bind(T.shift_right(T.bitwise_xor(value, worst[0]), T.uint32(min(shift + bits, 31))))
                    with T.If(shift + bits == 32 or known == 0), T.Then():
                        where = T.bind(T.Cast("int32", place))
                        store(counts, where, counts[where] + 1, 1)
                _find(counts, 1 << bits, state)
                found = T.shift_left(T.Cast("uint32", state[1]), T.uint32(shift))
                store(worst, 0, T.bitwise_or(worst[0], found), 1)
            chosen = local("i32", 1)
            store(chosen, 0, T.int32(0), 1)
            with T.serial(0, context) as i:
                value = score(i)
                with T.If(value >= worst[0]), T.Then():
                    equal = T.bind(T.Cast("int32", value == worst[0]))
                    with T.If(T.Or(equal == 0, state[0] > 0)), T.Then():
                        store(y, out + chosen[0], i, 1)
                        store(chosen, 0, chosen[0] + 1, 1)
                        store(state, 0, state[0] - equal, 1)


def _count(counts: Buffer, size: int) -> None:
    with T.serial(0, size) as i:
        store(counts, i, T.int32(0), 1)


def _find(counts: Buffer, size: int, state: Buffer) -> None:
    """state: of so many that are to be chosen, how many of the place in which the last of them is; and that place."""
    done = local("i32", 1)
    store(done, 0, T.int32(0), 1)
    with T.serial(0, size) as i:
        place = T.bind(size - 1 - i)
        with T.If(done[0] == 0), T.Then():
            with T.If(counts[place] >= state[0]):
                with T.Then():
                    store(done, 0, T.int32(1), 1)
                    store(state, 1, place, 1)
                with T.Else():
                    store(state, 0, state[0] - counts[place], 1)
