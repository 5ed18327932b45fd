"""Tiles by dot products of four int8 with four int8, which GPUs without matrix instructions may have: integer weights.

Weights are their codes less the zero point. Activations are rounded to int8 while they are staged, K_TILE values of a
row at a time: the largest magnitude becomes 127, so what a value loses is at most half a step, 1/254 of that largest
magnitude. Sums of K_TILE products are exact in int32; they are multiplied by the step of the activations and, where
weights have groups along K, the factor of the group, and added in float32. One factor for all of K is applied last.

A thread has eight rows and row `lane` of every block: twelve words are read from shared memory for 32 dot products.
A division may be off by 2.5 units in the last place on a Vulkan device. So a value that is as near to the middle
between two codes may be given either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

from dsv3c.compiler.formats.grids import Integers
from dsv3c.compiler.formats.packings import EACH
from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets import tir as T
from dsv3c.targets.gpu.capabilities import INTEGER_DOT
from dsv3c.targets.gpu.kernels.frame import THREADS, Buffer, Expr, barrier, f32, local, shared, store
from dsv3c.targets.gpu.kernels.units.unit import BLOCKS, K_TILE, SLICES, TILE, Factors, Keep
from dsv3c.targets.gpu.kernels.weights import ChunkCodes, Weight

DOT = "dsv3c_dot4"  # (u32, u32) -> int32, the sum of the four products of int8 that they consist of
WORDS = K_TILE // 4  # of a staged row
STRIDE = TILE + 8  # of words that are one place along K; eight more against bank conflicts
ROWS = TILE // SLICES  # activation rows of a thread in products
SUMS = ROWS * BLOCKS  # of a thread
QUARTERS = 4  # threads that stage a row: each eight values, of words `quarter` and QUARTERS + `quarter`
STAGED = THREADS // QUARTERS  # rows staged together
LEAST = (127 - 100) << 23  # bits of 2^-100; rows below it count as zero, so that 127 / largest is finite everywhere
SIGN = 128  # what int8 ends below
SIGNS = SIGN * EACH  # the highest bit of every byte


@dataclass(frozen=True)
class _Space:
    """Shared memory: int8 by four in words [WORDS, STRIDE] of either side; bits of largest magnitudes
    [TILE, QUARTERS]; what a step of the activations of a row is worth f32 [TILE]; factors of weight rows f32
    [2 * TILE], the second TILE for the second half of K_TILE where that is a group of its own."""

    weights: Buffer
    rows: Buffer
    largest: Buffer
    steps: Buffer
    factors: Buffer


@dataclass(frozen=True)
class IntegerDots:
    """A `Unit`."""

    capability: str = INTEGER_DOT

    def serves(self, weight: WeightFormat) -> bool:
        return isinstance(weight.grid, Integers) and weight.integer_products and weight.largest < SIGN

    def space(self) -> _Space:
        weights, rows = (shared(WORDS * STRIDE, "uint32") for _ in range(2))
        return _Space(weights, rows, shared(TILE * QUARTERS, "uint32"), shared(TILE), shared(2 * TILE))

    def product(self, factors: Factors, thread: Expr, space: _Space, keep: Keep) -> None:
        weight, rows = factors.weight, _Rows(factors, thread)
        lane, part = T.bind(T.bitwise_and(thread, T.int32(LANES - 1))), T.bind(T.shift_right(thread, T.int32(4)))
        first, grouped, parts = T.bind(part * ROWS), weight.groups > 1, factors.parts
        sums, products = local(SUMS), local(SUMS, "int32")
        for at in range(SUMS):
            store(sums, at, f32(0))

        def stage_factors(group: Expr, at: int = 0) -> None:
            with T.If(thread < TILE), T.Then():
                store(space.factors, at + thread, weight.factor(factors.block(part), group, lane))

        if not grouped:
            stage_factors(T.int32(0))
        with T.serial(0, factors.steps) as step:
            # All words are under way before the first barrier; staged ones are in use by other threads until then.
            chunks, values = _read(factors, step, (lane, part)), rows.read(step)
            rows.stage_largest(values, space)
            barrier()
            for chunk in chunks:
                chunk.stage(space)
            rows.stage(values, space)
            for number in range(parts if grouped else 0):
                group = T.floordiv(step * K_TILE, weight.format.grouping.size) if parts == 1 else step * parts + number
                stage_factors(T.bind(group), number * TILE)
            barrier()
            steps = [T.bind(space.steps[first + j]) for j in range(ROWS)]
            for number in range(parts):
                _multiply(products, first, lane, space, range(number * WORDS // parts, (number + 1) * WORDS // parts))
                places = [number * TILE + i * LANES + lane for i in range(BLOCKS)]
                scales = [T.bind(space.factors[place]) if grouped else None for place in places]
                for i, scale in enumerate(scales):
                    for j, one in enumerate(steps):
                        value = T.Cast("float32", products[i * ROWS + j])
                        store(sums, i * ROWS + j, sums[i * ROWS + j] + value * (one if scale is None else one * scale))
        found = [sums[at] for at in range(SUMS)]
        if not grouped:
            scales = [T.bind(space.factors[i * LANES + lane]) for i in range(BLOCKS)]
            found = [T.bind(value * scales[at // ROWS]) for at, value in enumerate(found)]
        for j in range(ROWS):
            row = T.bind(first + j)
            for pair in range(BLOCKS // 2):
                at = pair * 2 * ROWS + j
                keep(row, T.int32(pair), lane, (found[at], found[at + ROWS]))


def _multiply(products: Buffer, first: Expr, lane: Expr, space: _Space, words: range) -> None:
    """products[i * ROWS + j] = `words` of what is staged of row `lane` of block i times those of row first + j."""
    for at in range(SUMS):
        store(products, at, T.int32(0))
    with T.serial(words.start, words.stop) as k:
        start = T.bind(k * STRIDE)
        weights = [T.bind(space.weights[start + i * LANES + lane]) for i in range(BLOCKS)]
        rows = [T.bind(space.rows[start + first + j]) for j in range(ROWS)]
        for i, weight in enumerate(weights):
            for j, row in enumerate(rows):
                dot = T.call_extern("int32", DOT, weight, row)
                store(products, i * ROWS + j, products[i * ROWS + j] + dot)


@dataclass(frozen=True)
class _Chunk:
    """A chunk of a weight. at: where its first four int8 are staged, the next STRIDE behind. zero: of the codes."""

    codes: ChunkCodes
    at: Expr
    zero: Expr

    def stage(self, space: _Space) -> None:
        for i, codes in enumerate(_less_zero(self.codes, self.zero)):
            store(space.weights, self.at + i * STRIDE, codes)


def _read(factors: Factors, step: Expr, own: tuple[Expr, Expr]) -> list[_Chunk]:
    """What a thread stages of all blocks. own: row in a block and slice of the thread. K is padded to whole steps."""
    lane, part = own
    weight, found = factors.weight, []
    per_block = K_TILE // weight.chunk
    for turn in range(BLOCKS * per_block // SLICES):
        item = T.bind(turn * SLICES + part)
        i, within = T.bind(T.floordiv(item, per_block)), T.bind(T.floormod(item, per_block))
        block, chunk = factors.block(i), T.bind(step * per_block + within)
        codes = weight.codes(block, chunk, lane)
        at = T.bind(within * (WORDS // per_block * STRIDE) + i * LANES + lane)
        found.append(_Chunk(codes, at, _zero(weight, block, chunk, lane)))
    return found


def _zero(weight: Weight, block: Expr, chunk: Expr, lane: Expr) -> Expr:
    """The zero point of a chunk, u32."""
    if weight.zero is None:
        return T.uint32(weight.format.zero_point)
    return T.bind(T.Cast("uint32", weight.scales(block, chunk, lane).zero))


def _less_zero(codes: ChunkCodes, zero: Expr) -> Iterator[Expr]:
    """Codes less `zero`, four int8 a word. No byte borrows from its neighbour."""
    if codes.planes.bits == 8:  # the zero point is 128: it is the sign that changes
        yield from (T.bitwise_xor(quad, T.uint32(SIGNS)) for quad in codes.quads())
        return
    more = T.bind(T.uint32(SIGNS) - zero * T.uint32(EACH))
    yield from (T.bitwise_xor(quad + more, T.uint32(SIGNS)) for quad in codes.quads())


class _Rows:
    """The activations that a thread stages: eight values each of TILE // STAGED rows at a time."""

    def __init__(self, factors: Factors, thread: Expr) -> None:
        self._quarter = T.bind(T.bitwise_and(thread, T.int32(QUARTERS - 1)))
        first = T.bind(T.floordiv(thread, QUARTERS))
        self._rows = [T.bind(first + turn * STAGED) for turn in range(TILE // STAGED)]
        self._starts = [factors.start(row) for row in self._rows]
        self._x, self._k = factors.x, factors.weight.k
        self._whole = factors.steps * K_TILE == self._k

    def read(self, step: Expr) -> list[list[Expr]]:
        """Those of each row. Past the end of K, where weights are zero, the last one again: none becomes larger."""
        columns = []
        for half in range(WORDS // QUARTERS):
            low = T.bind(step * K_TILE + (half * QUARTERS + self._quarter) * 4)
            columns += [low + i if self._whole else T.bind(T.min(low + i, self._k - 1)) for i in range(4)]
        return [[T.bind(self._x[start + column]) for column in columns] for start in self._starts]

    def stage_largest(self, values: Sequence[Sequence[Expr]], space: _Space) -> None:
        """The largest magnitude of them, as bits: among these, unlike among floats, NaN is the largest of all."""
        for row, own in zip(self._rows, values, strict=True):
            bits = [T.bitwise_and(T.reinterpret("uint32", value), T.uint32(0x7FFFFFFF)) for value in own]
            store(space.largest, row * QUARTERS + self._quarter, reduce(T.max, bits))

    def stage(self, values: Sequence[Sequence[Expr]], space: _Space) -> None:
        """The values as int8, and what a step of theirs is worth."""
        for row, own in zip(self._rows, values, strict=True):
            bits = T.bind(reduce(T.max, [space.largest[row * QUARTERS + i] for i in range(QUARTERS)]))
            largest, none = T.bind(T.reinterpret("float32", bits)), T.bind(bits < T.uint32(LEAST))
            inverse = T.bind(T.Select(none, f32(0), f32(127) / largest))
            with T.If(self._quarter == 0), T.Then():
                store(space.steps, row, T.Select(none, f32(0), largest * f32(1 / 127)))
            codes = [T.bind(T.Cast("int32", T.nearbyint(value * inverse))) for value in own]
            for half in range(WORDS // QUARTERS):
                at = (half * QUARTERS + self._quarter) * STRIDE + row
                store(space.rows, at, _word(codes[half * 4 : half * 4 + 4]))


def _word(codes: Sequence[Expr]) -> Expr:
    """Four int32 in -128..127 as int8."""
    bytes_ = [T.bitwise_and(T.Cast("uint32", code), T.uint32(0xFF)) for code in codes[:3]]
    placed = [byte if i == 0 else T.shift_left(byte, T.uint32(8 * i)) for i, byte in enumerate(bytes_)]
    return reduce(T.bitwise_or, [*placed, T.shift_left(T.Cast("uint32", codes[3]), T.uint32(24))])
