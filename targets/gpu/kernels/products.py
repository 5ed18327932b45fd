"""linear and head_linear: packed weights, decoded in registers, times float32 rows, summed in float32.

Few rows: a thread has one output row and a slice of K, the slices are added in shared memory, so that weights are read
once and in whole lines. Many rows: tiles of 64 output rows and 32 activation rows, both staged in shared memory, or
tiles of matrix instructions where a device has them, see `matrix`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import gcd

from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.targets import tir as T
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.operands import CONTROL, Operand, View, view_of, weight_operands
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
)
from dsv3c.targets.gpu.kernels.units import matrix
from dsv3c.targets.gpu.kernels.units.unit import K_TILE, SLICES
from dsv3c.targets.gpu.kernels.weights import Weight

FEW = 16  # rows up to which weights are streamed
FEW_TILE = 4  # of these rows, together
AHEAD = 4  # words of a weight that a thread asks for at a time, half of it for several rows
ROW_BLOCKS, ROW_TILE = 4, 32  # of the tiled form
PART_ROWS = ROW_TILE // SLICES  # activation rows of a thread in it


def stream(
    weight: Weight, blocks: Sequence[Expr], x: Buffer, starts: Sequence[Expr], thread: Expr
) -> tuple[Expr, Callable[[int, int], Expr]]:
    """(lane, sums): sums(i, j) is the product of row `lane` of blocks[i] with x[starts[j]:], for the first sixteen
    threads. Padding of a weight is zero, so that K may be read past its end at its last element."""
    lane, part = T.bind(T.bitwise_and(thread, T.int32(LANES - 1))), T.bind(T.shift_right(thread, T.int32(4)))
    outs = len(blocks) * len(starts)
    sums, space = local(outs), shared(outs * THREADS)
    for i in range(outs):
        store(sums, i, f32(0))
    ahead = _ahead(weight, len(starts))
    whole = weight.chunks % (SLICES * ahead) == 0
    with T.serial(0, -(-weight.chunks // (SLICES * ahead))) as step:
        # Side by side, so that a thread's chunks have a factor in common.
        wanted = [T.bind((step * SLICES + part) * ahead + i) for i in range(ahead)]
        # Without a condition around them, so that all words are under way before the first is used.
        chunks = wanted if whole else [T.bind(T.min(chunk, weight.chunks - 1)) for chunk in wanted]
        scales = [weight.scales(block, chunks[0], lane) for block in blocks]
        values = [
            [weight.values(block, chunk, lane, scale) for chunk in chunks]
            for block, scale in zip(blocks, scales, strict=True)
        ]
        totals: list[Expr | None] = [None] * outs
        for number, chunk in enumerate(chunks):
            columns = [T.bind(_column(weight, chunk, i)) for i in range(weight.chunk)]
            rows = [[T.bind(x[start + column]) for column in columns] for start in starts]
            for at in range(outs):
                of_block, row = values[at // len(starts)][number], rows[at % len(starts)]
                if whole:
                    totals[at] = _dot(totals[at], of_block, row)
                    continue
                inside = T.Select(wanted[number] < weight.chunks, _dot(None, of_block, row), f32(0))
                totals[at] = T.bind(inside if number == 0 else totals[at] + inside)
        for at, found in enumerate(totals):
            factor = scales[at // len(starts)].factor
            store(sums, at, sums[at] + (found if factor is None else found * factor))
    for i in range(outs):
        store(space, i * THREADS + thread, sums[i])
    barrier()

    def total(i: int, j: int) -> Expr:
        first = (i * len(starts) + j) * THREADS
        value = space[first + lane]
        for other in range(1, SLICES):
            value = value + space[first + other * LANES + lane]
        return value

    return lane, total


def _dot(total: Expr | None, values: Sequence[Expr], row: Sequence[Expr]) -> Expr:
    for value, activation in zip(values, row, strict=True):
        product = value * activation
        total = T.bind(product if total is None else total + product)
    return total


def _ahead(weight: Weight, rows: int) -> int:
    """Chunks that a thread takes at a time: within one group, and no more than there are."""
    most = min(AHEAD if rows == 1 else AHEAD // 2, -(-weight.chunks // SLICES))
    return most if weight.groups == 1 else gcd(most, weight.group_chunks)


def _column(weight: Weight, chunk: Expr, i: int) -> Expr:
    column = chunk * weight.chunk + i
    return (
        column
        if weight.k % weight.chunk == 0 and weight.chunks * weight.chunk == weight.k
        else T.min(column, weight.k - 1)
    )


@dataclass(frozen=True)
class ThreadTile:
    """What a thread has of a product of ROW_TILE activation rows and some blocks of a weight: row `lane` of each block
    and PART_ROWS activation rows from `part` * PART_ROWS on."""

    lane: Expr
    part: Expr
    sums: Buffer
    blocks: int

    def rows(self) -> Iterator[tuple[Expr, list[Expr]]]:
        """(activation row, its sum with each block)."""
        for j in range(PART_ROWS):
            row = T.bind(self.part * PART_ROWS + j)
            yield row, [self.sums[i * PART_ROWS + j] for i in range(self.blocks)]


def tile_space() -> tuple[Buffer, Buffer]:
    """Shared memory that `tile` needs, for weights and for rows. Between two tiles it may serve for other things."""
    return shared(K_TILE * ROW_BLOCKS * LANES), shared(K_TILE * (ROW_TILE + 1))


def tile(
    weight: Weight,
    blocks: Sequence[Expr],
    x: Callable[[Expr, Expr], Expr],
    thread: Expr,
    space: tuple[Buffer, Buffer],
) -> ThreadTile:
    """Products of the activations x(row < ROW_TILE, column) with at most ROW_BLOCKS blocks."""
    lane, part = T.bind(T.bitwise_and(thread, T.int32(LANES - 1))), T.bind(T.shift_right(thread, T.int32(4)))
    per_thread, width = PART_ROWS, len(blocks) * LANES
    (weights, rows), sums = space, local(len(blocks) * per_thread)
    for i in range(len(blocks) * per_thread):
        store(sums, i, f32(0))
    chunks = K_TILE // weight.chunk  # of one step
    with T.serial(0, -(-weight.chunks // chunks)) as step:
        with T.serial(0, -(-chunks // SLICES)) as turn:
            within = T.bind(turn * SLICES + part)
            with T.If(within < chunks), T.Then():
                chunk = T.bind(step * chunks + within)
                inside = T.bind(chunk < weight.chunks)
                for i, block in enumerate(blocks):
                    values, factor = weight.decode(block, T.bind(T.min(chunk, weight.chunks - 1)), lane)
                    for j, value in enumerate(values):
                        scaled = value if factor is None else value * factor
                        at = (within * weight.chunk + j) * width + i * LANES + lane
                        store(weights, at, T.Select(inside, scaled, f32(0)))
        with T.serial(0, K_TILE * ROW_TILE // THREADS) as turn:
            item = T.bind(turn * THREADS + thread)
            row, k = T.bind(T.floordiv(item, K_TILE)), T.bind(T.floormod(item, K_TILE))
            column = T.min(step * K_TILE + k, weight.k - 1)
            store(rows, k * (ROW_TILE + 1) + row, x(row, T.bind(column)))
        barrier()
        with T.serial(0, K_TILE) as k:
            left = [T.bind(weights[k * width + i * LANES + lane]) for i in range(len(blocks))]
            right = [T.bind(rows[k * (ROW_TILE + 1) + part * per_thread + j]) for j in range(per_thread)]
            for i in range(len(blocks)):
                for j in range(per_thread):
                    at = i * per_thread + j
                    store(sums, at, sums[at] + left[i] * right[j])
        barrier()
    return ThreadTile(lane, part, sums, len(blocks))


def linear_operands(spec: Linear) -> tuple[Operand, ...]:
    m, view = spec.rows.maximum, view_of(spec.view, spec.heads, spec.k)
    weight = weight_operands("w", spec.weight, (spec.heads,), spec.n, spec.k)
    return (
        CONTROL,
        Operand("x", "f32", m * view.row_stride),
        *weight,
        Operand("y", "f32", m * spec.heads * spec.n),
    )


def linear(spec: Linear, operands: Sequence[Operand], out: View | None = None) -> tuple[Variant, ...]:
    """One row, few rows, many on matrix instructions, many. out: where y goes, if it is not alone in its rows."""
    out = out or View(spec.heads * spec.n, head_stride=spec.n)
    forms = ((1, 1), (FEW_TILE, FEW))
    few = [_few(spec, operands, out, tile, most) for tile, most in forms if most < spec.rows.bound]
    fast = [matrix.linear(unit, spec, operands, out) for unit in matrix.units(spec.weight) if spec.rows.bound > FEW]
    return (*few, *fast, _many(spec, operands, out))


def _few(spec: Linear, operands: Sequence[Operand], out: View, rows: int, most: int) -> Variant:
    view, blocks = view_of(spec.view, spec.heads, spec.k), -(-spec.n // LANES)
    grid = (Extent(spec.heads * blocks), Extent(1, spec.rows, rows))

    def emit(buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        weight, count = Weight.of(buffers, "w", spec.weight, spec.n, spec.k), row_count(buffers, spec.rows)
        head = T.bind(T.floordiv(groups[0], blocks))
        own = [T.bind(groups[1] * rows + i) for i in range(rows)]
        last = T.bind(T.max(count - 1, 0))  # a step without rows runs one workgroup
        starts = [T.bind(view.start(T.min(row, last), head)) for row in own]
        lane, sums = stream(weight, [groups[0]], buffers["x"], starts, thread)
        n = T.bind(T.floormod(groups[0], blocks) * LANES + lane)
        with T.If(T.And(thread < LANES, n < spec.n)), T.Then():
            for j, row in enumerate(own):
                with T.If(row < count), T.Then():
                    store(buffers["y"], out.start(row, head) + n, sums(0, j))

    return Variant(grid, lambda: prim_func(operands, grid, emit), spec.rows, most)


def _many(spec: Linear, operands: Sequence[Operand], out: View) -> Variant:
    view, blocks = view_of(spec.view, spec.heads, spec.k), -(-spec.n // LANES)
    runs = -(-blocks // ROW_BLOCKS)
    grid = (Extent(spec.heads * runs), Extent(1, spec.rows, ROW_TILE))

    def emit(buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        weight, count = Weight.of(buffers, "w", spec.weight, spec.n, spec.k), row_count(buffers, spec.rows)
        head = T.bind(T.floordiv(groups[0], runs))
        first = T.bind(T.floormod(groups[0], runs) * ROW_BLOCKS)
        own = [T.bind(head * blocks + T.min(first + i, blocks - 1)) for i in range(ROW_BLOCKS)]

        last = T.bind(T.max(count - 1, 0))

        def x(row: Expr, column: Expr) -> Expr:
            start = T.bind(view.start(T.min(groups[1] * ROW_TILE + row, last), head))
            return buffers["x"][start + column]

        found = tile(weight, own, x, thread, tile_space())
        for row, values in found.rows():
            m = T.bind(groups[1] * ROW_TILE + row)
            for i, value in enumerate(values):
                n = T.bind((first + i) * LANES + found.lane)
                with T.If(T.And(m < count, n < spec.n)), T.Then():
                    store(buffers["y"], out.start(m, head) + n, value)

    return Variant(grid, lambda: prim_func(operands, grid, emit), spec.rows)
