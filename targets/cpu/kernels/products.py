"""Products of any number of activation rows with weight blocks: which tiles they are cut into at a level.

Rows go through registers, a few at a time (`dot`). At a level with tile registers, rows of integers go through these 32
at a time (`amx`), and a rest only if it is large enough; so do rows of floats by codes that stand for floats, which are
decoded once for 64 (`decoded`). All give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets import tir as T
from dsv3c.targets.cpu.intrinsics import DOT4, PREFETCH_IR
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels import amx, decoded
from dsv3c.targets.cpu.kernels.coded import Coded, has_float_products
from dsv3c.targets.cpu.kernels.dot import Activation, Tile, dot_tile, tile_rows
from dsv3c.targets.cpu.kernels.fetch import Turn
from dsv3c.targets.cpu.kernels.frame import local, tiles
from dsv3c.targets.cpu.kernels.vector import store
from dsv3c.targets.cpu.kernels.weights import ANNOUNCE_IR, Weight
from dsv3c.targets.cpu.tiles import TILES, release

Expr = Any


@dataclass(frozen=True)
class Indexed:
    """The activation rows of a product: `count` of them, the i-th at (row, head) = place(i) of the view (q8: head 0).

    stride: q8 rows between the i-th and the next, where that is constant.
    """

    count: Expr
    place: Callable[[Expr], tuple[Expr, Expr]]
    stride: int | None = None


def multiplies(format: WeightFormat) -> bool:
    """Whether there are products with it: of plain floats, of integers on both sides, or of floats that codes are."""
    return format.integer_products or not format.has_codes or has_float_products(format)


def imports(level: IsaLevel, weight: WeightFormat) -> str:
    """LLVM IR that a kernel which announces its weights and calls `dot_rows` must import."""
    if not weight.integer_products:
        return ANNOUNCE_IR + PREFETCH_IR
    return ANNOUNCE_IR + PREFETCH_IR + DOT4[level.dot].llvm + (TILES[level.matrix] if level.matrix else "")


def dot_rows(
    level: IsaLevel,
    w: Weight,
    x: Activation,
    blocks: list[Expr],
    rows: Indexed,
    use: Callable[[Tile, list[Expr]], None],
) -> None:
    """use(sums, indices) for tiles of the products of `blocks` with all rows; sums.sums[block][i] is of indices[i].

    An index may come twice in a tile, see `tiles`. Each block's next is fetched meanwhile: callers go on with that.
    """

    def tile(indices: list[Expr]) -> None:
        places = [rows.place(index) for index in indices]
        turn = Turn.at(indices, rows.count, tile_rows(level, w))
        use(dot_tile(level, w, x, blocks, places, turn), indices)

    if has_float_products(w.format):
        done = _decoded_rows(level, w, x, blocks, rows, use)
        with T.If(done < rows.count), T.Then():
            tile([done])
        return
    if level.matrix is None or not w.format.integer_products:
        tiles(rows.count, tile_rows(level, w), tile)
        return
    done = _matrix_rows(level, w, x, blocks, rows, use)
    rest = T.bind(rows.count - done)
    tiles(rest, tile_rows(level, w), lambda indices: tile([T.bind(done + index) for index in indices]))


def _decoded_rows(
    level: IsaLevel,
    w: Weight,
    x: Activation,
    blocks: list[Expr],
    rows: Indexed,
    use: Callable[[Tile, list[Expr]], None],
) -> Expr:
    """The same in steps that decode weights once, for all rows but one left alone; returns how many these are."""
    memory = decoded.TaskMemory.of(level, w, len(blocks))

    def step(_: Expr, first: Expr, count: Expr) -> None:
        with T.serial(0, count) as i:
            store(memory.starts, i, x.view.start(*rows.place(first + i)), 1)
        products = decoded.Step(Coded(level, w), x.data, blocks, count, memory)
        products.compute()
        with T.serial(0, count) as i:
            use(products.row(i), [T.bind(first + i)])

    return _in_steps(rows.count, decoded.STEP_ROWS, decoded.LEAST_ROWS, step)


def _matrix_rows(
    level: IsaLevel,
    w: Weight,
    x: Activation,
    blocks: list[Expr],
    rows: Indexed,
    use: Callable[[Tile, list[Expr]], None],
) -> Expr:
    """The same for the first rows, in steps of the tile registers; returns how many these are."""
    memory, index = amx.TaskMemory.of(w.format, len(blocks)), local("i32", amx.STEP_ROWS)

    def step(number: Expr, first: Expr, count: Expr) -> None:
        with T.serial(0, count) as i:
            store(index, i, rows.place(first + i)[0], 1)
        amx.dot_step(w, x, blocks, amx.StepRows(index, count, rows.stride), memory, number)
        with T.serial(0, count) as i:
            use(amx.row_tile(w, memory, blocks, i), [T.bind(first + i)])

    done = _in_steps(rows.count, amx.STEP_ROWS, level.tuning.matrix_min_tokens, step)
    with T.If(done > 0):
        with T.Then():
            release()
    return done


def _in_steps(rows: Expr, size: int, least: int, step: Callable[[Expr, Expr, Expr], None]) -> Expr:
    """step(number, first, count) for `size` rows at a time, and for a rest of `least` or more; returns for how many."""
    steps = T.bind(T.floordiv(rows + (size - least), size))
    with T.serial(0, steps) as number:
        first = T.bind(number * size)
        step(number, first, T.bind(T.min(rows - first, size)))
    return T.bind(T.min(steps * size, rows))
