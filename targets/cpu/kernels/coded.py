"""Products of a row of float32 activations with codes that stand for floats: decoded in registers, one row alone.

Columns that decode side by side stay so: each has a sum of its own until the end, so that a row does not wait for its
last addition. In a group they are added up in the order of K, then the group's scale is applied; at the end the sums of
the columns are added. `decoded` does the same for many rows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import Any

from dsv3c.compiler.formats.grids import E4M3
from dsv3c.compiler.formats.packings import QUAD
from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets import tir as T
from dsv3c.targets.cpu.intrinsics import prefetch
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.frame import Buffer, local
from dsv3c.targets.cpu.kernels.vector import add, f32, load, store
from dsv3c.targets.cpu.kernels.weights import Weight

Expr = Any

REGISTERS = {4: 16, 8: 8, 16: 16}  # that sums take, by the lanes of one: enough for additions to wait for none of them


@dataclass(frozen=True)
class Decoder:
    """How words of a grid become numbers: times `unit` they are what the codes stand for.

    together: columns that are side by side in a vector, for each of the rows `rows` in turn. decode: (word uint32
    [lanes], lanes) -> vectors of `lanes` numbers, as many as the word has columns. The first `together` of them have
    the first columns, of different rows; the next ones have the next columns of the same rows.
    """

    together: int
    unit: float
    decode: Callable[[Expr, int], list[Expr]]

    def rows(self, which: int, lanes: int) -> list[int]:
        """The rows in a word of the vectors with number `which`, below `together`."""
        pairs = [QUAD * quad + which // 2 * 2 + i for quad in range(lanes // QUAD) for i in range(2)]
        return pairs[: lanes // QUAD] if which % 2 == 0 else pairs[lanes // QUAD :]


def _e4m3(word: Expr, lanes: int) -> list[Expr]:
    """A code is put where float16 has sign, exponent and fraction: that makes it smaller by 2^8, and nothing else."""
    codes, found = T.bind(T.reinterpret(f"uint8x{QUAD * lanes}", word)), []
    for half in range(2):
        # Each eight bytes of sixteen, two rows of them, twice: an instruction that crosses no lanes of 128 bits.
        order = [quad + half * 8 + i // 2 for quad in range(0, QUAD * lanes, 16) for i in range(16)]
        high = T.reinterpret(f"int16x{2 * lanes}", T.Shuffle([codes], order))
        # The sign stays in its place, and the bit that it leaves behind is masked, as is the lower byte.
        placed = T.shift_right(high, T.broadcast(T.int16(1), 2 * lanes))
        bits = T.bitwise_and(placed, T.broadcast(T.int16(0xBF80 - 0x10000), 2 * lanes))
        numbers = T.bind(T.Cast(f"float32x{2 * lanes}", T.reinterpret(f"float16x{2 * lanes}", bits)))
        found += [T.Shuffle([numbers], list(range(at, at + lanes))) for at in (0, lanes)]
    return found


# By grid.
DECODERS: Mapping[type, Decoder] = {E4M3: Decoder(QUAD, 2.0**8, _e4m3)}


def has_float_products(format: WeightFormat) -> bool:
    """Whether there are products of its codes with float32."""
    return type(format.grid) in DECODERS


@dataclass(frozen=True)
class Coded:
    """A weight as products with it take words of its blocks apart, and how they add up."""

    level: IsaLevel
    w: Weight

    @property
    def decoder(self) -> Decoder:
        return DECODERS[type(self.w.format.grid)]

    @property
    def parts(self) -> range:
        """Where those of a block begin."""
        return range(0, LANES, self.level.lanes)

    @property
    def sums(self) -> int:
        """Vectors that a block's sums take."""
        return len(self.parts) * self.decoder.together

    def each_group(self, body: Callable[[Expr, int], None]) -> None:
        """body(group, columns) for the groups of a row, from the first column on; the last may be cut short."""
        size = self.w.format.grouping.size
        whole, rest = divmod(self.w.k, size)
        if whole:
            with T.serial(0, whole) as g:
                body(g, size)
        if rest:
            body(T.int32(whole), rest)

    def decode(self, at: Expr, part: int) -> list[Expr]:
        """The numbers of the unit at an offset, of the rows of a part."""
        (word,) = self.w.words(at, self.level.lanes, part)
        return self.decoder.decode(word, self.level.lanes)

    def factors(self, x: Buffer, start: Expr, columns: int = 0) -> list[Expr]:
        """The activations of a unit, from `start` on, by vector; only of the first `columns`, if given."""
        together, lanes = self.decoder.together, self.level.lanes
        found = []
        for first in range(0, columns or self.w.planes.columns, together):
            inside = min(together, (columns or self.w.planes.columns) - first)
            some = [x[start + first + i] if i < inside else T.float32(0) for i in range(together)]
            each = load(x, start + first, together) if inside == together else T.Shuffle(some, list(range(together)))
            found += [T.bind(T.Shuffle([T.bind(each)] * (lanes // together), list(range(lanes))))] * together
        return found

    def scale(self, start: Expr, part: int, which: int) -> Expr:
        """The scales of a group whose scales are at `start`, for the sums number `which` of a part."""
        lanes, decoder = self.level.lanes, self.decoder
        scales = T.bind(self.w.scales(start + part, lanes) * f32(decoder.unit, lanes))
        return T.bind(T.Shuffle([scales], [row for row in decoder.rows(which, lanes) for _ in range(decoder.together)]))

    def folded(self, sums: list[Expr]) -> Expr:
        """By row, the sums of a part that were taken side by side."""
        lanes, together = self.level.lanes, self.decoder.together
        places = {row: which * lanes + i * together for which in range(together) for i, row in self._numbered(which)}
        columns = [T.Shuffle(sums, [places[row] + column for row in range(lanes)]) for column in range(together)]
        return T.bind(reduce(add, columns))

    def _numbered(self, which: int) -> list[tuple[int, int]]:
        return list(enumerate(self.decoder.rows(which, self.level.lanes)))


def coded_dot(
    level: IsaLevel,
    w: Weight,
    x: Buffer,
    starts: list[Expr],
    scale_starts: list[Expr],
    x_start: Expr,
    sums: list[Buffer],
) -> None:
    """sums[block] = the products of the blocks at `starts` with the row of x at `x_start`.

    The kernel must import PREFETCH_IR.
    """
    coded, lanes = Coded(level, w), level.lanes
    places = list(product(range(len(starts)), coded.parts))
    own = {place: _zeros(coded) for place in places}
    together = max(1, REGISTERS[lanes] // coded.decoder.together)

    def group(g: Expr, columns: int) -> None:
        units, rest = divmod(columns, w.planes.columns)
        first = T.bind(g * (w.format.grouping.size // w.planes.columns))
        for at in range(0, len(places), together):
            totals = {place: _zeros(coded) for place in places[at : at + together]}
            if units:
                with T.serial(0, units) as i:
                    _add_unit(coded, x, starts, T.bind(first + i), x_start, totals)
            if rest:
                _add_unit(coded, x, starts, T.bind(first + units), x_start, totals, rest)
            for (block, part), total in totals.items():
                scales = T.bind(scale_starts[block] + T.Cast("int64", g) * LANES)
                for which in range(coded.decoder.together):
                    scale, to = coded.scale(scales, part, which), own[block, part]
                    store(
                        to,
                        which * lanes,
                        load(total, which * lanes, lanes) * scale + load(to, which * lanes, lanes),
                        lanes,
                    )

    coded.each_group(group)
    for (block, part), buffer in own.items():
        by_column = [T.bind(load(buffer, which * lanes, lanes)) for which in range(coded.decoder.together)]
        store(sums[block], part, coded.folded(by_column), lanes)


def _zeros(coded: Coded) -> Buffer:
    """The sums of a part."""
    lanes, together = coded.level.lanes, coded.decoder.together
    buffer = local("f32", lanes * together)
    for which in range(together):
        store(buffer, which * lanes, f32(0, lanes), lanes)
    return buffer


def _add_unit(
    coded: Coded,
    x: Buffer,
    starts: list[Expr],
    unit: Expr,
    x_start: Expr,
    totals: Mapping[tuple[int, int], Buffer],
    columns: int = 0,
) -> None:
    """The products of a unit, of all of its columns or only the first ones, for each block and part."""
    w, lanes, together = coded.w, coded.level.lanes, coded.decoder.together
    factors = coded.factors(x, T.bind(x_start + unit * w.planes.columns), columns)
    for block in dict.fromkeys(block for block, _ in totals):
        at = T.bind(w.unit_at(starts[block], unit))
        # As in integer products: the hardware's own prefetching stops at the end of each page.
        prefetch(w.data, at + T.int64(coded.level.tuning.prefetch_bytes))
        for part in (part for other, part in totals if other == block):
            total = totals[block, part]
            for i, (numbers, factor) in enumerate(zip(coded.decode(at, part), factors, strict=False)):
                where = i % together * lanes
                store(total, where, numbers * factor + load(total, where, lanes), lanes)
