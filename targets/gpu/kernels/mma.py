"""linear for many rows on tensor cores: tiles of 64 activation rows and 64 output rows, summed in float32.

Both sides become bfloat16, which has the range of float32. Codes of int4, int8 and fp8 are exact in it, and so are the
stored bfloat16; float16 weights are rounded. Scales multiply the float32 sums: of all of K, or of one group along K.
float32 weights have no such form.

A workgroup has four warps, each with 32 x 32 of the tile in fragments of mma.m16n8k16. Of K_TILE values of K at a time,
both sides are staged in shared memory, as pairs of values in words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from dsv3c.compiler.layouts import LANES
from dsv3c.compiler.quant import QuantSpec
from dsv3c.targets.cpu.kernels.frame import View
from dsv3c.targets.cpu.kernels.linear import Linear
from dsv3c.targets.gpu.capabilities import MMA
from dsv3c.targets.gpu.kernels.frame import (
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
    store,
    view_of,
)
from dsv3c.targets.gpu.kernels.weights import Weight
from dsv3c.targets.plan import Operand

TILE = 64  # activation rows, and output rows
BLOCKS = TILE // LANES  # of the weight
K_TILE = 32  # every group along K is a multiple of it
PAIRS = K_TILE // 2
STRIDE = PAIRS + 4  # words of a staged row: with these four more, the 32 words of a fragment lie in 32 banks
SLICES = THREADS // LANES
SIDE = 32  # of the square that a warp computes
ROW_FRAGMENTS, COLUMN_FRAGMENTS = SIDE // 16, SIDE // 8
SUMS = 4 * ROW_FRAGMENTS * COLUMN_FRAGMENTS  # of a thread


def serves(weight: QuantSpec) -> bool:
    """Whether products with such weights may have bfloat16 factors."""
    return weight.element != "f32"


def linear(spec: Linear, operands: Sequence[Operand], out: View) -> Variant:
    """The form for any number of rows. out: where y goes."""
    view, blocks = view_of(spec.view, spec.heads, spec.k), -(-spec.n // LANES)
    runs = -(-blocks // BLOCKS)
    grid = (Extent(spec.heads * runs), Extent(1, spec.rows, TILE))

    def emit(buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        weight, count = Weight.of(buffers, "w", spec.weight, spec.n, spec.k), row_count(buffers, spec.rows)
        head = T.bind(T.floordiv(groups[0], runs))
        first = T.bind(T.floormod(groups[0], runs) * BLOCKS)
        first_row = T.bind(groups[1] * TILE)
        last = T.bind(T.max(count - 1, 0))

        def block(i: Expr) -> Expr:
            return T.bind(head * blocks + T.min(first + i, blocks - 1))

        def start(row: Expr) -> Expr:
            return T.bind(view.start(T.min(first_row + row, last), head))

        sums = _product(weight, block, buffers["x"], start, thread)
        for row, column, value in _Place(thread).sums(sums):
            m, n = T.bind(first_row + row), T.bind(first * LANES + column)
            with T.If(T.And(m < count, n < spec.n)), T.Then():
                store(buffers["y"], out.start(m, head) + n, value)

    return Variant(grid, lambda: prim_func(operands, grid, emit), spec.rows, requires=frozenset({MMA}))


@dataclass(frozen=True)
class _Place:
    """Where a thread is: the corner of its warp's square in the tile, and its own part of the fragments (the PTX ISA's
    groupID and threadID_in_group)."""

    thread: Expr

    @property
    def corner(self) -> tuple[Expr, Expr]:
        """(activation row, output row)."""
        warp = T.bind(T.shift_right(self.thread, T.int32(5)))
        return T.bind(T.bitwise_and(warp, T.int32(1)) * SIDE), T.bind(T.shift_right(warp, T.int32(1)) * SIDE)

    @property
    def group(self) -> Expr:
        return T.bind(T.shift_right(T.bitwise_and(self.thread, T.int32(31)), T.int32(2)))

    @property
    def member(self) -> Expr:
        return T.bind(T.bitwise_and(self.thread, T.int32(3)))

    def sums(self, sums: Buffer) -> Iterator[tuple[Expr, Expr, Expr]]:
        """(activation row, output row, sum) of all that a thread has."""
        row, column = self.corner
        row, column = T.bind(row + self.group), T.bind(column + self.member * 2)
        for at in range(SUMS):
            fragment, element = divmod(at, 4)
            i, j = divmod(fragment, COLUMN_FRAGMENTS)
            yield row + (i * 16 + element // 2 * 8), column + (j * 8 + element % 2), sums[at]


def _product(
    weight: Weight, block: Callable[[Expr], Expr], x: Buffer, start: Callable[[Expr], Expr], thread: Expr
) -> Buffer:
    """The sums of a thread: activations x[start(row < TILE):] times the blocks block(i < BLOCKS)."""
    lane, part = T.bind(T.bitwise_and(thread, T.int32(LANES - 1))), T.bind(T.shift_right(thread, T.int32(4)))
    weights, rows, factors = shared(TILE * STRIDE, "uint32"), shared(TILE * STRIDE, "uint32"), shared(2 * TILE)
    starts = [start(turn * SLICES + part) for turn in range(TILE // SLICES)]
    place, sums = _Place(thread), local(SUMS)
    (row, column), group, member = place.corner, place.group, place.member
    row_words, column_words = T.bind((row + group) * STRIDE + member), T.bind((column + group) * STRIDE + member)

    def add(step: Expr) -> None:
        """The products of K_TILE values of K from step * K_TILE on."""
        _stage_weights(weight, block, step, (lane, part), weights)
        for turn, first in enumerate(starts):
            low = T.bind(step * K_TILE + lane * 2)
            values = [T.bind(x[first + T.min(low + i, weight.k - 1)]) for i in range(2)]
            store(rows, (turn * SLICES + part) * STRIDE + lane, _pair(*values))
        barrier()
        for at in range(0, PAIRS, 8):
            _multiply(sums, (rows, T.bind(row_words + at)), (weights, T.bind(column_words + at)))
        barrier()

    def stage_factors(number: Expr, at: Expr) -> None:
        """The factors of a group, seen by all threads after the next barrier."""
        with T.If(thread < TILE), T.Then():
            store(factors, at + thread, weight.factor(block(part), number, lane))

    _clear(sums)
    steps = -(-weight.chunks * weight.chunk // K_TILE)
    if weight.scale is None or weight.groups == 1:
        if weight.scale is not None:
            stage_factors(T.int32(0), T.int32(0))
        with T.serial(0, steps) as step:
            add(step)
        if weight.scale is not None:
            for at, factor in enumerate(_factors(factors, column + member * 2)):
                store(sums, at, sums[at] * factor)
        return sums
    scaled, each = local(SUMS), steps // weight.groups
    _clear(scaled)
    with T.serial(0, weight.groups) as number:
        # Two places by turns: a thread may still read the factors of the group before.
        own = T.bind(T.bitwise_and(number, T.int32(1)) * TILE)
        stage_factors(number, own)
        with T.serial(0, each) as step:
            add(T.bind(number * each + step))
        for at, factor in enumerate(_factors(factors, own + column + member * 2)):
            store(scaled, at, scaled[at] + sums[at] * factor)
        _clear(sums)
    return scaled


def _clear(sums: Buffer) -> None:
    for at in range(SUMS):
        store(sums, at, f32(0))


def _factors(factors: Buffer, first: Expr) -> list[Expr]:
    """The factor of each sum of a thread; first: where that of its first output row is."""
    first = T.bind(first)
    found = [[T.bind(factors[first + (j * 8 + i)]) for i in range(2)] for j in range(COLUMN_FRAGMENTS)]
    return [found[at // 4 % COLUMN_FRAGMENTS][at % 2] for at in range(SUMS)]


def _stage_weights(
    weight: Weight, block: Callable[[Expr], Expr], step: Expr, own: tuple[Expr, Expr], space: Buffer
) -> None:
    """K_TILE values of K of all blocks, their factors left out. own: row in a block and slice of a thread."""
    lane, part = own
    size = max(weight.chunk, 2)  # values that a thread stages together
    per_block = K_TILE // size
    for turn in range(BLOCKS * per_block // SLICES):
        item = T.bind(turn * SLICES + part)
        i, within = T.bind(T.floordiv(item, per_block)), T.bind(T.floormod(item, per_block))
        at = T.bind((i * LANES + lane) * STRIDE + within * (size // 2))
        for j, word in enumerate(_pairs(weight, block(i), T.bind(step * per_block + within), lane)):
            store(space, at + j, word)


def _pairs(weight: Weight, block: Expr, item: Expr, lane: Expr) -> list[Expr]:
    """Neighbours along K as bfloat16, two a word; zero where K has ended."""
    whole = weight.chunks * weight.chunk % K_TILE == 0
    if weight.spec.element == "bf16":  # as it is stored
        held = item if whole else T.bind(T.min(item, weight.chunks - 1))
        word = T.bind(weight.data[(block * weight.chunks + held) * LANES + lane])
        return [word if whole else T.Select(item < weight.chunks, word, T.uint32(0))]
    values = []
    for number in range(2 if weight.chunk == 1 else 1):
        chunk = T.bind(item * 2 + number) if weight.chunk == 1 else item
        held = chunk if whole else T.bind(T.min(chunk, weight.chunks - 1))
        found, _ = weight.decode(block, held, lane)
        values += [value if whole else T.Select(chunk < weight.chunks, value, f32(0)) for value in found]
    return [_pair(low, high) for low, high in zip(values[::2], values[1::2], strict=True)]


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
            at = (i * COLUMN_FRAGMENTS + j) * 4
            T.evaluate(T.call_extern("void", "dsv3c_mma_bf16", T.address_of(sums[at]), *a[i], *b[j]))


def _pair(low: Expr, high: Expr) -> Expr:
    """Two float32 as bfloat16, to nearest even, the first in the low half of a word."""
    return T.bind(T.call_extern("uint32", "dsv3c_bf16x2", low, high))
