"""Products of many rows of activations with codes that stand for floats: a group of a block is decoded once for all.

Rows are taken STEP_ROWS at a time. A group's numbers, 8 KiB a block, stay in the first-level cache, as do the sums of a
step, while the rows' activations of that group go by, a tile of rows at a time. Additions are those of `coded`, in its
order: the results are equal to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import gcd
from typing import Any, NamedTuple

from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.targets import tir as T
from dsv3c.targets.cpu.intrinsics import prefetch
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.coded import REGISTERS, Coded
from dsv3c.targets.cpu.kernels.dot import Tile
from dsv3c.targets.cpu.kernels.frame import Buffer, local, stack, tiles
from dsv3c.targets.cpu.kernels.vector import f32, load, store
from dsv3c.targets.cpu.kernels.weights import Weight

Expr = Any

STEP_ROWS = 64
LEAST_ROWS = 2
_TILE_ROWS = {4: 4, 8: 3, 16: 4}  # by the lanes of a register: of eight there are only sixteen
_RUN = 4  # vectors of sums that a tile has registers for
_UNROLL = 2  # units


@dataclass(frozen=True)
class TaskMemory:
    """What the steps of a task work in, on its stack."""

    starts: Buffer  # i32 [STEP_ROWS], of the rows of activations
    numbers: Buffer  # f32 x lanes [blocks, runs of a block, units of a group, vectors of a unit that go into a run]
    scales: Buffer  # f32 x lanes [blocks, sums of a block], of a group
    sums: Buffer  # f32 x lanes [STEP_ROWS, blocks, sums of a block]

    @classmethod
    def of(cls, level: IsaLevel, w: Weight, blocks: int) -> TaskMemory:
        coded, lanes = Coded(level, w), level.lanes
        return cls(
            starts=local("i32", STEP_ROWS),
            numbers=stack("f32", lanes, blocks * len(coded.parts) * w.format.grouping.size),
            scales=stack("f32", lanes, blocks * coded.sums),
            sums=stack("f32", lanes, STEP_ROWS * blocks * coded.sums),
        )


class _Sum(NamedTuple):
    """A vector of the sums of a row: of a block, by number."""

    block: int
    number: int


@dataclass(frozen=True)
class Step:
    """`count` rows of x, at least one, whose offsets stand in memory.starts, by `blocks` of w."""

    coded: Coded
    x: Buffer
    blocks: list[Expr]
    count: Expr
    memory: TaskMemory

    @property
    def run(self) -> int:
        """Sums that are added up together."""
        return gcd(self.coded.sums, _RUN)

    def compute(self) -> None:
        """memory.sums = the products, by column. The kernel must import PREFETCH_IR."""
        w, lanes = self.coded.w, self.coded.level.lanes
        starts = [w.start(block) for block in self.blocks]
        scale_starts = [w.scale_start(block) for block in self.blocks]
        with T.serial(0, self.count * (len(self.blocks) * self.coded.sums)) as i:
            store(self.memory.sums, i, f32(0, lanes), 1)

        def group(g: Expr, columns: int) -> None:
            for block, start in enumerate(starts):
                self._decode(block, start, g, columns)
                self._put_scales(block, T.bind(scale_starts[block] + T.Cast("int64", g) * LANES))
            tiles(self.count, _TILE_ROWS[lanes], lambda rows: self._add(g, columns, rows))

        self.coded.each_group(group)

    def row(self, row: Expr) -> Tile:
        """The finished sums of one row."""
        lanes, together = self.coded.level.lanes, self.coded.decoder.together
        found = [[local("f32", LANES)] for _ in self.blocks]
        for (block, (buffer,)), (i, part) in product(enumerate(found), enumerate(self.coded.parts)):
            places = [self._place(row, _Sum(block, i * together + which)) for which in range(together)]
            store(buffer, part, self.coded.folded([T.bind(self.memory.sums[place]) for place in places]), lanes)
        return Tile(found, lanes)

    def _place(self, row: Expr, own: _Sum) -> Expr:
        return (row * len(self.blocks) + own.block) * self.coded.sums + own.number

    def _number(self, own: _Sum, unit: Expr, column: int) -> Expr:
        """Where the numbers of a unit are that go into a sum: those of sums of a run lie side by side."""
        planes = self.coded.w.planes
        columns = planes.columns // self.coded.decoder.together  # one after the other
        units = self.coded.w.format.grouping.size // planes.columns
        run, place = divmod(own.block * self.coded.sums + own.number, self.run)
        return ((unit + run * units) * columns + column) * self.run + place

    def _decode(self, block: int, start: Expr, g: Expr, columns: int) -> None:
        """memory.numbers = those of the first `columns` of group g of a block, and of what a last unit has besides."""
        w = self.coded.w
        first = T.bind(w.unit_at(start, g * (w.format.grouping.size // w.planes.columns)))
        with T.serial(0, -(-columns // w.planes.columns)) as unit:
            at = T.bind(w.unit_at(first, unit))
            prefetch(w.data, at + T.int64(self.coded.level.tuning.prefetch_bytes))
            for i, part in enumerate(self.coded.parts):
                for vector, numbers in enumerate(self.coded.decode(at, part)):
                    column, which = divmod(vector, self.coded.decoder.together)
                    own = _Sum(block, i * self.coded.decoder.together + which)
                    store(self.memory.numbers, self._number(own, unit, column), numbers, 1)

    def _put_scales(self, block: int, start: Expr) -> None:
        together = self.coded.decoder.together
        for (i, part), which in product(enumerate(self.coded.parts), range(together)):
            place = block * self.coded.sums + i * together + which
            store(self.memory.scales, place, self.coded.scale(start, part, which), 1)

    def _add(self, g: Expr, columns: int, rows: list[Expr]) -> None:
        """Add the products of a group with a tile of rows to their sums."""
        w, lanes = self.coded.w, self.coded.level.lanes
        units, rest = divmod(columns, w.planes.columns)
        unroll = gcd(units, _UNROLL)
        x_starts = [T.bind(self.memory.starts[row] + g * w.format.grouping.size) for row in rows]
        all_sums = [_Sum(*place) for place in product(range(len(self.blocks)), range(self.coded.sums))]
        together = self.run * max(1, REGISTERS[lanes] // (self.run * len(rows)))
        for at in range(0, len(all_sums), together):
            totals = {own: local("f32", len(rows) * lanes) for own in all_sums[at : at + together]}
            for total, row in product(totals.values(), range(len(rows))):
                store(total, row * lanes, f32(0, lanes), lanes)
            if units:
                with T.serial(0, units // unroll) as i:
                    for unit in range(unroll):
                        self._add_unit(T.bind(i * unroll + unit), x_starts, totals)
            if rest:
                self._add_unit(T.int32(units), x_starts, totals, rest)
            self._add_totals(totals, rows)

    def _add_unit(self, unit: Expr, x_starts: list[Expr], totals: dict[_Sum, Buffer], columns: int = 0) -> None:
        """The products of a unit, of all of its columns or only the first ones."""
        coded, lanes, together = self.coded, self.coded.level.lanes, self.coded.decoder.together
        first = T.bind(unit * coded.w.planes.columns)
        factors = [coded.factors(self.x, start + first, columns) for start in x_starts]
        for own, total in totals.items():
            for vector in range(own.number % together, len(factors[0]), together):
                numbers = T.bind(self.memory.numbers[self._number(own, unit, vector // together)])
                for row, factor in enumerate(factors):
                    value = numbers * factor[vector] + load(total, row * lanes, lanes)
                    store(total, row * lanes, value, lanes)

    def _add_totals(self, totals: dict[_Sum, Buffer], rows: list[Expr]) -> None:
        """Sums are read before any is written: a row that comes twice in a tile counts once."""
        lanes, results = self.coded.level.lanes, []
        for own, total in totals.items():
            scale = T.bind(self.memory.scales[own.block * self.coded.sums + own.number])
            for i, row in enumerate(rows):
                place = T.bind(self._place(row, own))
                value = load(total, i * lanes, lanes) * scale + self.memory.sums[place]
                results.append((place, T.bind(value)))
        for place, value in results:
            store(self.memory.sums, place, value, 1)
