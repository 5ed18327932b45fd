"""Integer products by instructions that multiply matrices: two weight rows by two activation rows, eight columns deep.

Layout rows16 has four columns of a row side by side. Four columns and the next four, as zip lays them, are the operand
of two rows. The sums of two activation rows come back from theirs in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.targets import tir as T
from dsv3c.targets.cpu.intrinsics import MMLA
from dsv3c.targets.cpu.kernels.frame import Buffer, local
from dsv3c.targets.cpu.kernels.vector import load, store

Expr = Any
# (block, first of eight columns, part) -> uint32x4 of four rows' codes: four columns, and the next four
ReadCodes = Callable[[int, Expr, int], tuple[Expr, Expr]]

WIDTH = 4  # lanes of 32 bits
STEP = 16  # columns that a step takes: a whole vector of an activation row
_ZIPS = ([0, 4, 1, 5], [2, 6, 3, 7])
_UNZIPS = ([0, 2, 4, 6], [1, 3, 5, 7])


def add_products(
    name: str, codes: ReadCodes, data: Buffer, first: Expr, columns: int, starts: list[Expr], sums: list[list[Buffer]]
) -> None:
    """sums[block][row] += codes . data[start + first : + columns] for an even number of rows, which begin at `starts`.

    sums: int32 of sixteen. columns: a multiple of STEP. name: of the instruction in `intrinsics.MMLA`.
    """
    pairs = range(0, len(starts), 2)
    parts = range(0, LANES, WIDTH)
    tiles = [[local("i32", 2 * LANES) for _ in pairs] for _ in sums]
    for block_sums, block_tiles in zip(sums, tiles, strict=True):
        for row, tile in zip(pairs, block_tiles, strict=True):
            for part in parts:
                both = [T.bind(load(block_sums[row + i], part, WIDTH)) for i in range(2)]
                _put(tile, part, [T.Shuffle(both, order) for order in _ZIPS])
    with T.serial(0, columns // STEP) as step:
        _step(name, codes, data, T.bind(first + step * STEP), starts, tiles)
    for block_sums, block_tiles in zip(sums, tiles, strict=True):
        for row, tile in zip(pairs, block_tiles, strict=True):
            for part in parts:
                both = [T.bind(load(tile, 2 * part + at, WIDTH)) for at in (0, WIDTH)]
                for i, order in enumerate(_UNZIPS):
                    store(block_sums[row + i], part, T.Shuffle(both, order), WIDTH)


def _step(
    name: str, codes: ReadCodes, data: Buffer, column: Expr, starts: list[Expr], tiles: list[list[Buffer]]
) -> None:
    rows = [T.bind(load(data, start + column, STEP)) for start in starts]
    for half in (0, 8):
        order = [at + i for at in (half, STEP + half) for i in range(8)]
        operands = [T.bind(T.Shuffle(rows[i : i + 2], order)) for i in range(0, len(rows), 2)]
        for block, block_tiles in enumerate(tiles):
            for part in range(0, LANES, WIDTH):
                both = list(codes(block, column + half, part))
                weights = [T.bind(T.Shuffle(both, order)) for order in _ZIPS]
                for tile, operand in zip(block_tiles, operands, strict=True):
                    before = [load(tile, 2 * part + at, WIDTH) for at in (0, WIDTH)]
                    products = zip(before, weights, strict=True)
                    _put(tile, part, [MMLA[name].emit(acc, weight, operand) for acc, weight in products])


def _put(tile: Buffer, part: int, halves: list[Expr]) -> None:
    for at, value in enumerate(halves):
        store(tile, 2 * part + at * WIDTH, value, WIDTH)
