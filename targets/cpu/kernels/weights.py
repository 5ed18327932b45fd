"""Packed weights (layout rows16) as kernels read them: where blocks lie, and their words taken apart in registers.

`quads` serves integer products: codes in the bytes of 32-bit lanes. It follows the planes of the format's packing, so
that formats which differ in bits alone need nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

from dsv3c.compiler.formats.grids import E2M1, NF4, Steps
from dsv3c.compiler.formats.packings import EACH, QUAD, WORD_BITS, Planes
from dsv3c.compiler.formats.rows16 import LANES, padded_rows, planes_of, stored_columns
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets import tir as T
from dsv3c.targets.calls.operands import operand_bytes, weight_operands
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.frame import Buffer
from dsv3c.targets.cpu.kernels.tables import lookup_bytes
from dsv3c.targets.cpu.kernels.vector import load, load_f32

Expr = Any

# What a kernel that announces must import: other thread pools than ours do not listen.
_PARAMETERS = "i32 %items, i32 %segments, i32 %blocks, i32 %run" + "".join(f", ptr %p{i}, i64 %n{i}" for i in range(3))
ANNOUNCE_IR = f"""
@dsv3c_announce = weak hidden global ptr null
define linkonce_odr hidden i32 @dsv3c_announce_weights({_PARAMETERS}) alwaysinline nounwind {{
  %listener = load ptr, ptr @dsv3c_announce
  %deaf = icmp eq ptr %listener, null
  br i1 %deaf, label %done, label %say
say:
  %ignored = call i32 %listener({_PARAMETERS})
  br label %done
done:
  ret i32 0
}}
"""
LINE = 64  # bytes of a cache line, and of a word of sixteen rows


@dataclass(frozen=True)
class Weight:
    """The buffers of a packed weight [..., n, k] under `role`. Blocks are numbered through the leading dims."""

    format: WeightFormat
    n: int
    k: int
    data: Buffer
    scale: Buffer  # None for plain floats
    zero: Buffer  # None unless groups have zeros of their own

    @classmethod
    def of(cls, buffers: dict[str, Buffer], role: str, format: WeightFormat, n: int, k: int) -> Weight:
        components = [buffers.get(f"{role}.{name}") for name in ("data", "scale", "zero")]
        return cls(format, n, k, *components)

    @property
    def planes(self) -> Planes:
        """How codes are stored."""
        return planes_of(self.format)

    @property
    def blocks(self) -> int:
        """Blocks of one [n, k] matrix."""
        return padded_rows(self.n) // LANES

    def together(self, level: IsaLevel) -> int:
        """Blocks that share a tile: what the level has registers for, if it divides the number of blocks.

        One of floats, which take several times the cache.
        """
        wanted = level.tuning.row_blocks if self.format.has_codes else 1
        return wanted if self.blocks % wanted == 0 else 1

    @property
    def block_size(self) -> int:
        """Elements of `data` in one block."""
        columns = stored_columns(self.format, self.k)
        return columns // self.planes.columns * self.planes.words * LINE if self.format.has_codes else columns * LANES

    def announce(self, items: Expr, segments: int, blocks: int, run: int = 1) -> None:
        """Tell the thread pool about the parallel loop over `items` that comes next, before anything else is launched.

        The weight is `segments` times `blocks` blocks, one behind the other. Item i reads, of every segment or of those
        that it needs, `run` blocks from i % (blocks / run, rounded up) * run on. See targets/cpu/native/nodes.h.
        """
        sizes = [operand_bytes(part) for part in weight_operands("w", self.format, (), LANES, self.k)]
        told = [T.int64(0)] * 6
        for i, (part, size) in enumerate(zip((self.data, self.scale, self.zero), sizes, strict=False)):
            told[2 * i : 2 * i + 2] = T.address_of(part[0]), T.int64(size)
        T.evaluate(T.call_extern("int32", "dsv3c_announce_weights", items, segments, blocks, run, *told))

    def start(self, block: Expr) -> Expr:
        """Offset of a block in `data`: 64-bit, as stacked experts pass 2^31 elements."""
        return T.bind(T.Cast("int64", block) * T.int64(self.block_size))

    def scale_start(self, block: Expr) -> Expr:
        return T.bind(T.Cast("int64", block) * T.int64(self.format.scale_groups(self.k) * LANES))

    def group_start(self, start: Expr, g: Expr) -> Expr:
        """Offset of the scales of group g of the activations, in the block whose scales are at `start`."""
        return start + T.Cast("int64", g) * LANES if self.format.grouping.size else start

    def scales(self, at: Expr, lanes: int = LANES) -> Expr:
        """float32 scales from the offset `at` on."""
        return load_f32(self.scale, at, lanes, self.format.grouping.scale)

    @property
    def steps(self) -> Steps | None:
        """How the grid's numbers are integers that its codes are not."""
        return self.format.grid.steps if isinstance(self.format.grid, E2M1 | NF4) else None

    @property
    def integer_zero(self) -> int:
        """What stands for 0 among the integers of products, where groups have no zeros of their own."""
        return self.steps.zero if self.steps else self.format.zero_point

    @property
    def integer_bits(self) -> int:
        """Bits of the largest of these integers."""
        return max(self.steps.table).bit_length() if self.steps else self.planes.bits

    def integers(self, codes: list[Expr], lanes: int = LANES, flipped: int = 0) -> list[Expr]:
        """Quads of codes as quads of integers, with the bits `flipped` of each the other way."""
        if self.steps:
            table = [entry ^ flipped for entry in self.steps.table]
            return [T.bind(lookup_bytes(table, quad, lanes)) for quad in codes]
        bits = T.broadcast(T.uint32(flipped * EACH), lanes)
        return [T.bind(T.bitwise_xor(quad, bits)) for quad in codes] if flipped else codes

    def scaled(self, x_scale: Expr) -> Expr:
        """The scale of activations for products with these integers."""
        return x_scale * T.float32(self.steps.size) if self.steps else x_scale

    def unit_at(self, start: Expr, unit: Expr) -> Expr:
        """Offset of a unit of the block at `start`."""
        return start + T.Cast("int64", unit) * (LINE * self.planes.words)

    def words(self, at: Expr, lanes: int = LANES, part: int = 0) -> list[Expr]:
        """The words of the unit at an offset, uint32 of `lanes` rows from `part` on."""
        offsets = (at + word * LINE + part * QUAD for word in range(self.planes.words))
        return [T.bind(T.reinterpret(f"uint32x{lanes}", load(self.data, offset, QUAD * lanes))) for offset in offsets]


def quads(planes: Planes, words: list[Expr], lanes: int = LANES) -> list[Expr]:
    """The codes of a unit from its words: uint32 lanes of four, in the order of K."""
    return [_quad(planes, words, number, lanes) for number in range(planes.columns // QUAD)]


def _quad(planes: Planes, words: list[Expr], number: int, lanes: int) -> Expr:
    pieces = []
    for first, width, below in planes.planes:
        word, field = divmod(number, 8 // width)
        pieces.append(_field(words[first + word], field * width, width, below, lanes))
    return reduce(T.bitwise_or, pieces)


def _field(word: Expr, start: int, width: int, below: int, lanes: int) -> Expr:
    """The bits of each byte from `start` on, put where `below` bits are below them."""
    if width == 8:
        return word
    if start != below:
        shift = T.shift_right if start > below else T.shift_left
        word = shift(word, T.broadcast(T.uint32(abs(start - below)), lanes))
    return T.bitwise_and(word, T.broadcast(T.uint32(((1 << width) - 1) * EACH << below), lanes))


def eight_columns(w: Weight, start: Expr, column: Expr, lanes: int, part: int) -> list[Expr]:
    """Two quads of the block at `start`, from `column` on, a multiple of eight."""
    planes = w.planes
    if planes.columns > 2 * QUAD:
        return _two_quads(w, start, column, lanes, part)
    first = T.floordiv(column * planes.bits, WORD_BITS)
    units = range(2 * QUAD // planes.columns)
    words = [w.words(w.unit_at(start, first + unit), lanes, part) for unit in units]
    return [quad for unit in words for quad in quads(planes, unit, lanes)]


def columns_quads(w: Weight, start: Expr, column: Expr, count: int, lanes: int = LANES, part: int = 0) -> list[Expr]:
    """The quads of `count` columns of the block at `start`, from `column` on: whole units, or eights of one."""
    planes = w.planes
    if count % planes.columns:
        eights = range(0, count, 2 * QUAD)
        return [quad for at in eights for quad in eight_columns(w, start, column + at, lanes, part)]
    first = T.floordiv(column, planes.columns)
    words = [w.words(w.unit_at(start, first + unit), lanes, part) for unit in range(count // planes.columns)]
    return [quad for unit in words for quad in quads(planes, unit, lanes)]


def _two_quads(w: Weight, start: Expr, column: Expr, lanes: int, part: int) -> list[Expr]:
    """The same where a unit has more columns: which word, and which of its fields, is known at run time."""
    planes = w.planes
    at = w.unit_at(start, T.floordiv(column, planes.columns))
    number = T.bind(T.floordiv(T.floormod(column, planes.columns), QUAD))  # of the first quad in its unit
    found: list[list[Expr]] = [[], []]
    for first, width, below in planes.planes:
        fields = 8 // width
        offset = at + T.Cast("int64", first + T.floordiv(number, fields)) * LINE + part * QUAD
        word = T.bind(T.reinterpret(f"uint32x{lanes}", load(w.data, offset, QUAD * lanes)))
        shift = T.Cast("uint32", T.floormod(number, fields) * width)
        low = T.bind(T.shift_right(word, T.broadcast(shift, lanes)))
        for i, pieces in enumerate(found):
            pieces.append(_field(low, i * width, width, below, lanes))
    return [reduce(T.bitwise_or, pieces) for pieces in found]
