"""Products of float32 activations with codes that stand for floats: decoded in registers, a multiply-add a weight.

The columns of a group are cut into quarters, each with a sum of its own, so that a row alone does not wait for its
last addition. Quarters are added, and the group's scale applied, in an order that does not depend on the tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import Any, NamedTuple

from dsv3c.compiler.formats.grids import E4M3
from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets import tir as T
from dsv3c.targets.cpu.intrinsics import prefetch
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.frame import Buffer, local
from dsv3c.targets.cpu.kernels.vector import add, f32, load, store
from dsv3c.targets.cpu.kernels.weights import Weight

Expr = Any

QUARTERS = 4
_REGISTERS = {4: 16, 8: 4, 16: 16}  # that sums may take, by the lanes of one: the others decode


class Decoded(NamedTuple):
    """Weights of some columns of a word: of each row in turn one of every column, float32."""

    columns: tuple[int, ...]
    numbers: Expr


@dataclass(frozen=True)
class Decoder:
    """How words of a grid become numbers: times `unit` they are what the codes stand for.

    together: columns that numbers are decoded of side by side. decode: (word uint32 [lanes], lanes) -> a word's.
    """

    together: int
    unit: float
    decode: Callable[[Expr, int], Iterator[Decoded]]


def _e4m3(word: Expr, lanes: int) -> Iterator[Decoded]:
    """A code is put where float16 has sign, exponent and fraction: that makes it smaller by 2^8, and nothing else."""
    pairs, float_pairs = f"int16x{2 * lanes}", f"float32x{2 * lanes}"
    both = T.bind(T.reinterpret(pairs, word))
    for columns, high in (((0, 2), T.shift_left(both, T.broadcast(T.int16(8), 2 * lanes))), ((1, 3), both)):
        # The sign stays in its place, and the bit that it leaves behind is masked.
        placed = T.shift_right(high, T.broadcast(T.int16(1), 2 * lanes))
        bits = T.bitwise_and(placed, T.broadcast(T.int16(0xBF80 - 0x10000), 2 * lanes))
        yield Decoded(columns, T.bind(T.Cast(float_pairs, T.reinterpret(f"float16x{2 * lanes}", bits))))


# By grid.
DECODERS: Mapping[type, Decoder] = {E4M3: Decoder(2, 2.0**8, _e4m3)}


def has_float_products(format: WeightFormat) -> bool:
    """Whether there are products of its codes with float32."""
    return type(format.grid) in DECODERS


class _Job(NamedTuple):
    """The sums of a quarter of the columns for one part of a block."""

    quarter: int
    block: int
    part: int


def coded_dot(
    level: IsaLevel,
    w: Weight,
    x: Buffer,
    starts: list[Expr],
    scale_starts: list[Expr],
    x_starts: list[Expr],
    sums: list[list[Buffer]],
) -> None:
    """sums[block][row] += the products of the blocks at `starts` with the rows of x at `x_starts`.

    The kernel must import PREFETCH_IR.
    """
    size = w.format.grouping.size
    whole, rest = divmod(w.k, size)
    dot = _Group(level, w, x, starts, x_starts)
    if whole:
        with T.serial(0, whole) as g:
            dot.add(g, size, scale_starts, sums)
    if rest:
        dot.add(T.int32(whole), rest, scale_starts, sums)


@dataclass(frozen=True)
class _Group:
    """The products of one group of columns at a time."""

    level: IsaLevel
    w: Weight
    x: Buffer
    starts: list[Expr]
    x_starts: list[Expr]

    @property
    def decoder(self) -> Decoder:
        return DECODERS[type(self.w.format.grid)]

    def add(self, g: Expr, columns: int, scale_starts: list[Expr], sums: list[list[Buffer]]) -> None:
        """Those of the first `columns` of group g."""
        lanes, size = self.level.lanes, self.w.format.grouping.size
        units, rest = divmod(columns, self.w.planes.columns)
        quarters = QUARTERS if columns == size and units % QUARTERS == 0 else 1
        first, each = T.bind(g * (size // self.w.planes.columns)), units // quarters
        totals = [[local("f32", LANES) for _ in self.x_starts] for _ in self.starts]
        places = list(product(range(len(self.starts)), range(0, LANES, lanes)))
        for block, part in places:
            for total in totals[block]:
                store(total, part, f32(0, lanes), lanes)
        together = max(1, _REGISTERS[lanes] // (len(self.x_starts) * self.decoder.together))
        at_once = min(quarters, max(1, together // len(places)))
        with T.serial(0, quarters // at_once) as turn:
            for at in range(0, len(places), together):
                jobs = [_Job(i, *place) for i in range(at_once) for place in places[at : at + together]]
                own = {job: self._cleared() for job in jobs}
                if each:
                    with T.serial(0, each) as i:
                        self._add_units({job: first + ((turn * at_once + job.quarter) * each + i) for job in jobs}, own)
                if rest:
                    self._add_units(dict.fromkeys(jobs, first + units), own, rest)
                for job in jobs:
                    for total, buffer in zip(totals[job.block], own[job], strict=True):
                        store(total, job.part, load(total, job.part, lanes) + self._folded(buffer), lanes)
        for block, part in places:
            at = scale_starts[block] + T.Cast("int64", g) * LANES + part
            scale = T.bind(self.w.scales(at, lanes) * f32(self.decoder.unit, lanes))
            for total, buffer in zip(totals[block], sums[block], strict=True):
                store(buffer, part, load(total, part, lanes) * scale + load(buffer, part, lanes), lanes)

    def _cleared(self) -> list[Buffer]:
        """A sum for each row of activations."""
        width = self.decoder.together * self.level.lanes
        buffers = [local("f32", width) for _ in self.x_starts]
        for buffer in buffers:
            store(buffer, 0, f32(0, width), width)
        return buffers

    def _add_units(self, units: Mapping[_Job, Expr], own: Mapping[_Job, list[Buffer]], columns: int = 0) -> None:
        """The products of a unit for each job, all of its columns or only the first ones."""
        w, lanes, width = self.w, self.level.lanes, self.decoder.together * self.level.lanes
        for quarter in dict.fromkeys(job.quarter for job in units):
            jobs = [job for job in units if job.quarter == quarter]
            unit = T.bind(units[jobs[0]])
            factors = [self._factors(start + unit * w.planes.columns, columns) for start in self.x_starts]
            for block in dict.fromkeys(job.block for job in jobs):
                at = T.bind(w.unit_at(self.starts[block], unit))
                if len(self.x_starts) == 1:
                    # As in integer products: the hardware's own prefetching stops at the end of each page.
                    prefetch(w.data, at + T.int64(self.level.tuning.prefetch_bytes))
                for job in (job for job in jobs if job.block == block):
                    (word,) = w.words(at, lanes, job.part)
                    for decoded in self.decoder.decode(word, lanes):
                        for row, factor in enumerate(factors):
                            if decoded.columns in factor:
                                total = own[job][row]
                                value = decoded.numbers * factor[decoded.columns] + load(total, 0, width)
                                store(total, 0, value, width)

    def _factors(self, start: Expr, columns: int) -> dict[tuple[int, ...], Expr]:
        """The activations of a unit, from `start` on, as decoded numbers want them; none past `columns`, if given."""
        start, count, together = T.bind(start), self.w.planes.columns, self.decoder.together
        lanes, inside = self.level.lanes, columns or count
        if together == 1:
            return {(i,): T.bind(T.broadcast(self.x[start + i], lanes)) for i in range(inside)}
        pairs = [(first, first + count // 2) for first in range(count // 2)]
        if inside == count:
            each = T.bind(load(self.x, start, count))
        else:
            values = [self.x[start + i] if i < inside else T.float32(0) for i in range(count)]
            each = T.bind(T.Shuffle(values, [*range(count)]))
        found: dict[tuple[int, ...], Expr] = {}
        for pair in pairs:
            both = T.broadcast(T.reinterpret("uint64", T.Shuffle([each], [*pair])), lanes)
            found[pair] = T.bind(T.reinterpret(f"float32x{2 * lanes}", both))
        return found

    def _folded(self, sums: Buffer) -> Expr:
        """Sums by row, of those that were taken side by side."""
        lanes, together = self.level.lanes, self.decoder.together
        whole = T.bind(load(sums, 0, together * lanes))
        if together == 1:
            return whole
        parts = [T.Shuffle([whole], list(range(at, together * lanes, together))) for at in range(together)]
        return T.bind(reduce(add, parts))
