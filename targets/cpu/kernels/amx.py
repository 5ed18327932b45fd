"""Integer products on the tile registers of AMX: up to 32 activation rows by one or two weight blocks a step.

Sixteen 64-byte words of layout rows16 in int8 are a tile as they lie: 64 columns of sixteen weight rows. Codes of
fewer bits are first unpacked into such a tile. Each activation group is multiplied into int32 tiles, which are stored,
scaled and added to float32 sums by the operations of `dot`, in its order: the results are equal to the bit.

For 16 x 16 sums and a group of 32 the products take one instruction of 16 cycles, and the scaling 16 x (add, convert,
multiply, multiply-add): 64 vector instructions, 32 cycles of two units, plus 32 stores. VNNI takes 128 instructions for
the products and 64 for the scaling. A group of 64 is one product of twice the columns to the same scaling. These are
counts of instructions; no time was taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets import tir as T
from dsv3c.targets.cpu import tiles
from dsv3c.targets.cpu.intrinsics import prefetch
from dsv3c.targets.cpu.kernels.dot import Activation, Tile
from dsv3c.targets.cpu.kernels.frame import Buffer, local, stack
from dsv3c.targets.cpu.kernels.vector import f32, load, store
from dsv3c.targets.cpu.kernels.weights import LINE, Weight, columns_quads

Expr = Any

HALVES = 2  # tiles of activation rows in a step
STEP_ROWS = HALVES * tiles.ROWS


@dataclass(frozen=True)
class StepRows:
    """The q8 rows of a step. index: i32 [STEP_ROWS], the row of x of each; count: how many, from 1 on.

    stride: rows of x between one and the next, where that is constant; None: any, so that a step copies them together.
    """

    index: Buffer
    count: Expr
    stride: int | None


@dataclass(frozen=True)
class TaskMemory:
    """What the steps of a task work in, on its stack: 12 KiB at most, which stay in the first-level cache."""

    config: Buffer  # of the tiles
    sums: Buffer  # f32x16 [blocks, STEP_ROWS]
    products: Buffer  # i32x16, the same, of one group
    codes: Buffer  # u8x64 [blocks, 16]: unpacked codes of fewer than eight bits
    rows: Buffer  # i8 x depth [STEP_ROWS]: activations of rows that are no constant stride apart

    @classmethod
    def of(cls, format: WeightFormat, blocks: int) -> TaskMemory:
        return cls(
            config=local("u8", tiles.CONFIG_BYTES),
            sums=stack("f32", LANES, blocks * STEP_ROWS),
            products=stack("i32", LANES, blocks * STEP_ROWS),
            codes=stack("u8", tiles.BYTES, blocks * tiles.ROWS),
            rows=stack("i8", _depth(format), STEP_ROWS),
        )


def _depth(format: WeightFormat) -> int:
    """Columns of a product."""
    return min(format.grouping.activations, tiles.BYTES)


def dot_step(w: Weight, x: Activation, blocks: list[Expr], rows: StepRows, memory: TaskMemory, number: Expr) -> None:
    """memory.sums = products of weight `blocks` with `rows`, but for the scale of a whole weight row.

    number: which step it is; the first fetches each block's next meanwhile, so the kernel must import PREFETCH_IR.
    """
    group, depth = w.format.grouping.activations, _depth(w.format)
    starts = [w.start(block) for block in blocks]
    scale_starts = [w.scale_start(block) for block in blocks]
    _configure(memory.config, rows.count, depth)
    with T.serial(0, len(blocks) * STEP_ROWS) as i:
        store(memory.sums, i, f32(0, LANES), 1)
    with T.serial(0, w.format.padded_k(w.k) // group) as g:
        _fetch(w, number, starts, g)
        for column in range(0, group, depth):
            _multiply(w, x, starts, rows, memory, g * group + column, depth, column == 0, column + depth == group)
        _scale(w, x, scale_starts, rows, memory, g)


def row_tile(w: Weight, memory: TaskMemory, blocks: list[Expr], row: Expr) -> Tile:
    """The finished sums of one row of a step."""
    sums = [[local("f32", LANES)] for _ in blocks]
    for i, block in enumerate(blocks):
        value = memory.sums[i * STEP_ROWS + row]
        if not w.format.grouping.size:
            value = value * load(w.scale, w.scale_start(block), LANES)
        store(sums[i][0], 0, value, LANES)
    return Tile(sums, LANES)


def _configure(config: Buffer, count: Expr, depth: int) -> None:
    """Tiles of just the rows there are: none past the end is read, nor waited for.

    Palette 1: bytes 16 to 31 have the bytes of a row of each tile, as 16-bit numbers, 48 to 55 the rows.
    """
    shapes: dict[int, tuple[Expr, int]] = dict.fromkeys(tiles.CODES, (depth // 4, tiles.BYTES))
    for half in range(HALVES):
        present = T.max(_rows_of(half, count), 1)  # a tile must have a row, used or not
        shapes[tiles.ACTIVATIONS[half]] = present, depth
        shapes |= {sums[half]: (present, tiles.BYTES) for sums in tiles.SUMS}
    store(config, 0, T.broadcast(T.uint8(0), tiles.CONFIG_BYTES), tiles.CONFIG_BYTES)
    store(config, 0, T.uint8(1), 1)
    for tile, (height, width) in shapes.items():
        store(config, 16 + 2 * tile, T.uint8(width), 1)
        store(config, 48 + tile, T.Cast("uint8", height), 1)
    tiles.configure(config)


def _rows_of(half: int, count: Expr) -> Expr:
    """Rows in one half of a step; of the upper half possibly none, or less."""
    return T.min(count - half * tiles.ROWS, tiles.ROWS)


@contextmanager
def _when(condition: Expr) -> Iterator[None]:
    with T.If(condition):
        with T.Then():
            yield


def _multiply(
    w: Weight,
    x: Activation,
    starts: list[Expr],
    rows: StepRows,
    memory: TaskMemory,
    column: Expr,
    depth: int,
    is_first: bool,
    is_last: bool,
) -> None:
    """Add the products of `depth` columns to the tiles, which the first of a group clears and the last one stores."""
    for block, start in enumerate(starts):
        _load_codes(w, memory.codes, block, start, column, depth)
    for half, x_tile in enumerate(tiles.ACTIVATIONS):
        with _when(rows.count > tiles.ROWS) if half else nullcontext():
            _load_rows(w, x, rows, memory.rows, half, column, depth)
            for block in range(len(starts)):
                acc = tiles.SUMS[block][half]
                if is_first:
                    tiles.zero(acc)
                tiles.multiply(acc, x_tile, tiles.CODES[block])
                if is_last:
                    tiles.store_tile(acc, memory.products, block * STEP_ROWS + half * tiles.ROWS)


def _load_codes(w: Weight, unpacked: Buffer, block: int, start: Expr, column: Expr, depth: int) -> None:
    planes = w.planes
    if planes.bits == 8:
        at = start + T.Cast("int64", column) * LANES
        tiles.load_tile(tiles.CODES[block], w.data, at, tiles.BYTES)
        return
    first = block * tiles.ROWS
    for i, codes in enumerate(w.integers(columns_quads(w, start, column, depth))):
        store(unpacked, first + i, T.reinterpret("uint8x64", codes), 1)
    tiles.load_tile(tiles.CODES[block], unpacked, first, tiles.BYTES)


def _load_rows(w: Weight, x: Activation, rows: StepRows, copied: Buffer, half: int, column: Expr, depth: int) -> None:
    """The activations of one half of the rows.

    Rows of any distance are copied `depth` bytes at a time: as many bytes as the tiles load anyway, from and to the
    first-level cache, and one store a row to the two that the sums of each block take. A copy of whole rows once for
    all tasks would need memory of their size and a wait of all tasks for it.
    """
    first, width = half * tiles.ROWS, w.format.padded_k(w.k)
    tile = tiles.ACTIVATIONS[half]
    if rows.stride is not None:
        tiles.load_tile(tile, x.data, rows.index[first] * width + column, rows.stride * width)
        return
    with T.serial(0, _rows_of(half, rows.count)) as i:
        store(copied, first + i, load(x.data, rows.index[first + i] * width + column, depth), 1)
    tiles.load_tile(tile, copied, first, depth)


def _scale(w: Weight, x: Activation, scale_starts: list[Expr], rows: StepRows, memory: TaskMemory, g: Expr) -> None:
    """sums += (products - zero * sum of the row's codes) * scales, of group g."""
    grouping = w.format.grouping
    groups = grouping.padded_k(w.k) // grouping.activations
    places = [w.group_start(start, g) for start in scale_starts]
    scales = [T.bind(w.scales(at)) for at in places if grouping.size]
    zeros = [T.bind(T.Cast("int32x16", load(w.zero, at, LANES))) for at in places if w.zero is not None]
    with T.serial(0, rows.count) as row:
        at = T.bind(rows.index[row] * groups + g)
        x_scale = T.bind(T.broadcast(w.scaled(x.scale[at]), LANES))
        total = T.bind(0 - x.sum[at])
        for block in range(len(scale_starts)):
            place = block * STEP_ROWS + row
            zero = w.integer_zero
            offset = zeros[block] * T.broadcast(total, LANES) if zeros else T.broadcast(total * zero, LANES)
            exact = T.Cast("float32x16", memory.products[place] + offset)
            factor = scales[block] * x_scale if scales else x_scale
            store(memory.sums, place, exact * factor + memory.sums[place], 1)


def _fetch(w: Weight, number: Expr, starts: list[Expr], g: Expr) -> None:
    """The lines of group g of the next blocks, in the first step."""
    size = w.format.grouping.activations * LANES * w.planes.bits // 8
    with _when(number == 0), T.serial(0, -(-size // LINE)) as line:
        at = T.bind(T.Cast("int64", g * size + line * LINE) + T.int64(w.block_size))
        for start in starts:
            prefetch(w.data, start + at)
