"""Tiles on the tensor cores of NVIDIA, summed in float32.

Both sides become bfloat16, which has the range of float32. Codes of integers, fp8 and MXFP4 are exact in it, and so are
the stored bfloat16; NF4 and float16 weights are rounded. Scales multiply the float32 sums: of all of K, or of one group
along K. float32 weights have no such form.

A workgroup has four warps, each with 32 x 32 of the tile in fragments of mma.m16n8k16. Of K_TILE values of K at a time,
both sides are staged in shared memory, as pairs of values in words. Sixteen values are a product, and may be a group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets import tir as T
from dsv3c.targets.gpu.capabilities import MMA
from dsv3c.targets.gpu.kernels.frame import Buffer, Expr, barrier, f32, local, shared, store
from dsv3c.targets.gpu.kernels.units.fragments import Thread, multiply, pair
from dsv3c.targets.gpu.kernels.units.unit import BLOCKS, K_TILE, SIDE, SLICES, TILE, Factors, Keep
from dsv3c.targets.gpu.kernels.weights import Weight

PAIRS = K_TILE // 2
STRIDE = PAIRS + 4  # words of a staged row: with these four more, the 32 words of a fragment lie in 32 banks
ROW_FRAGMENTS, COLUMN_FRAGMENTS = SIDE // 16, SIDE // 8
SUMS = 4 * ROW_FRAGMENTS * COLUMN_FRAGMENTS  # of a thread


@dataclass(frozen=True)
class _Space:
    """Shared memory: pairs of bfloat16 in words [TILE, STRIDE] of either side, factors f32 [4 * TILE]."""

    weights: Buffer
    rows: Buffer
    factors: Buffer


@dataclass(frozen=True)
class TensorCores:
    """A `Unit`."""

    capability: str = MMA

    def serves(self, weight: WeightFormat) -> bool:
        return weight.element != "f32"

    def space(self) -> _Space:
        return _Space(shared(TILE * STRIDE, "uint32"), shared(TILE * STRIDE, "uint32"), shared(4 * TILE))

    def product(self, factors: Factors, thread: Expr, space: _Space, keep: Keep) -> None:
        place = Thread.of(thread)
        _each(place, _product(factors, place, space), keep)


def _corner(place: Thread) -> tuple[Expr, Expr]:
    """(activation row, output row) of the square of a thread's warp."""
    return T.bind(T.bitwise_and(place.warp, T.int32(1)) * SIDE), T.bind(T.shift_right(place.warp, T.int32(1)) * SIDE)


def _each(place: Thread, sums: Buffer, keep: Keep) -> None:
    """The square of a warp is two blocks wide: of each row, a thread has the same columns of both."""
    row, column = _corner(place)
    row, two, lane = T.bind(row + place.group), T.bind(T.shift_right(column, T.int32(5))), T.bind(place.member * 2)
    for i in range(ROW_FRAGMENTS):
        for j in range(COLUMN_FRAGMENTS // 2):
            for element in range(4):
                first, second = (sums[_sum(i, j + block * 2, element)] for block in range(2))
                own, n = row + (i * 16 + element // 2 * 8), lane + (j * 8 + element % 2)
                keep(T.bind(own), two, T.bind(n), (first, second))


def _sum(i: int, j: int, element: int) -> int:
    """Where a thread has a sum: element of the fragment i along rows, j along columns."""
    return (i * COLUMN_FRAGMENTS + j) * 4 + element


def _product(factors: Factors, place: Thread, space: _Space) -> Buffer:
    """The sums of a thread."""
    weight, thread = factors.weight, place.thread
    lane, part = T.bind(T.bitwise_and(thread, T.int32(LANES - 1))), T.bind(T.shift_right(thread, T.int32(4)))
    starts = [factors.start(turn * SLICES + part) for turn in range(TILE // SLICES)]
    sums, steps = local(SUMS), factors.steps
    (row, column), group, member = _corner(place), place.group, place.member
    row_words, column_words = T.bind((row + group) * STRIDE + member), T.bind((column + group) * STRIDE + member)

    def add(step: Expr, after: Callable[[int], None] | None = None) -> None:
        """The products of K_TILE values of K from step * K_TILE on; after(half) when those of a half were added."""
        _stage_weights(factors, step, (lane, part), space.weights)
        for turn, first in enumerate(starts):
            low = T.bind(step * K_TILE + lane * 2)
            values = [T.bind(factors.x[first + T.min(low + i, weight.k - 1)]) for i in range(2)]
            store(space.rows, (turn * SLICES + part) * STRIDE + lane, pair(*values))
        barrier()
        for half, at in enumerate(range(0, PAIRS, 8)):
            _multiply(sums, (space.rows, T.bind(row_words + at)), (space.weights, T.bind(column_words + at)))
            if after:
                after(half)
        barrier()

    def stage_scales(number: Expr, at: Expr) -> None:
        """The factors of a group, seen by all threads after the next barrier."""
        with T.If(thread < TILE), T.Then():
            store(space.factors, at + thread, weight.factor(factors.block(part), number, lane))

    _clear(sums)
    if weight.scale is None or weight.groups == 1:
        if weight.scale is not None:
            stage_scales(T.int32(0), T.int32(0))
        with T.serial(0, steps) as step:
            add(step)
        if weight.scale is not None:
            for at, factor in enumerate(_scales(space.factors, column + member * 2)):
                store(sums, at, sums[at] * factor)
        return sums
    scaled, parts = local(SUMS), factors.parts
    runs = weight.groups // parts
    _clear(scaled)
    with T.serial(0, runs) as number:
        # Two places by turns: a thread may still read the factors of the group before.
        own = T.bind(T.bitwise_and(number, T.int32(1)) * (parts * TILE))
        for i in range(parts):
            stage_scales(number if parts == 1 else number * parts + i, own + i * TILE)

        def scale(half: int, own: Expr = own) -> None:
            for at, factor in enumerate(_scales(space.factors, own + half * TILE + column + member * 2)):
                store(scaled, at, scaled[at] + sums[at] * factor)
            _clear(sums)

        with T.serial(0, steps // runs) as step:
            add(T.bind(number * (steps // runs) + step), None if parts == 1 else scale)
        if parts == 1:
            scale(0)
    return scaled


def _clear(sums: Buffer) -> None:
    for at in range(SUMS):
        store(sums, at, f32(0))


def _scales(factors: Buffer, first: Expr) -> list[Expr]:
    """The factor of each sum of a thread; first: where that of its first output row is."""
    first = T.bind(first)
    found = [[T.bind(factors[first + (j * 8 + i)]) for i in range(2)] for j in range(COLUMN_FRAGMENTS)]
    return [found[at // 4 % COLUMN_FRAGMENTS][at % 2] for at in range(SUMS)]


def _stage_weights(factors: Factors, step: Expr, own: tuple[Expr, Expr], space: Buffer) -> None:
    """K_TILE values of K of all blocks, their factors left out. own: row in a block and slice of a thread."""
    lane, part = own
    weight = factors.weight
    size = max(weight.chunk, 2)  # values that a thread stages together
    per_block = K_TILE // size
    for turn in range(BLOCKS * per_block // SLICES):
        item = T.bind(turn * SLICES + part)
        i, within = T.bind(T.floordiv(item, per_block)), T.bind(T.floormod(item, per_block))
        at = T.bind((i * LANES + lane) * STRIDE + within * (size // 2))
        for j, word in enumerate(_pairs(weight, factors.block(i), T.bind(step * per_block + within), lane)):
            store(space, at + j, word)


def _pairs(weight: Weight, block: Expr, item: Expr, lane: Expr) -> list[Expr]:
    """Neighbours along K as bfloat16, two a word; zero where K has ended."""
    whole = weight.chunks * weight.chunk % K_TILE == 0
    if weight.format.element == "bf16":  # as it is stored
        held = item if whole else T.bind(T.min(item, weight.chunks - 1))
        word = T.bind(weight.data[(block * weight.chunks + held) * LANES + lane])
        return [word if whole else T.Select(item < weight.chunks, word, T.uint32(0))]
    values = []
    for number in range(2 if weight.chunk == 1 else 1):
        chunk = T.bind(item * 2 + number) if weight.chunk == 1 else item
        held = chunk if whole else T.bind(T.min(chunk, weight.chunks - 1))
        found, _ = weight.decode(block, held, lane)
        values += [value if whole else T.Select(chunk < weight.chunks, value, f32(0)) for value in found]
    return [pair(low, high) for low, high in zip(values[::2], values[1::2], strict=True)]


def _multiply(sums: Buffer, rows: tuple[Buffer, Expr], weights: tuple[Buffer, Expr]) -> None:
    """sums += the products of sixteen values of K. Each side: what is staged, and the first word of a thread."""
    (left, row), (right, column) = rows, weights
    a = [
        [T.bind(left[row + ((i * 16 + half * 8) * STRIDE + k * 4)]) for k in range(2) for half in range(2)]
        for i in range(ROW_FRAGMENTS)
    ]
    b = [[T.bind(right[column + (j * 8 * STRIDE + k * 4)]) for k in range(2)] for j in range(COLUMN_FRAGMENTS)]
    for i in range(ROW_FRAGMENTS):
        for j in range(COLUMN_FRAGMENTS):
            multiply(sums, _sum(i, j, 0), a[i], b[j])
