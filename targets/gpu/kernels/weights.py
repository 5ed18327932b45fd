"""Packed weights as kernels read them: words decoded in registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce

from dsv3c.compiler.formats import rows, rows16
from dsv3c.compiler.formats.grids import E2M1, E4M3, NF4, NF4_VALUES, Integers
from dsv3c.compiler.formats.packings import EACH, QUAD, WORD_BITS, Planes
from dsv3c.compiler.formats.rows16 import LANES, elements_of, planes_of, stored_columns
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets import tir as T
from dsv3c.targets.gpu.kernels.frame import Buffer, Buffers, Expr, f32
from dsv3c.targets.gpu.kernels.words import bit_field, e2m1, e4m3, e8m0, entry, f16, high_bf16, low_bf16, numbers


@dataclass(frozen=True)
class Weight:
    """A packed weight; blocks of sixteen rows count through all heads or experts."""

    data: Buffer
    scale: Buffer | None
    zero: Buffer | None
    format: WeightFormat
    n: int
    k: int

    @classmethod
    def of(cls, buffers: Buffers, role: str, format: WeightFormat, n: int, k: int) -> Weight:
        return cls(buffers[f"{role}.data"], buffers.get(f"{role}.scale"), buffers.get(f"{role}.zero"), format, n, k)

    @property
    def blocks(self) -> int:
        """Blocks of one head or expert."""
        return -(-self.n // LANES)

    @property
    def chunk(self) -> int:
        """Values of one row that are decoded together: those of a word, of the widest plane, or one."""
        packing = self.format.packings[rows16.NAME]
        return packing.wide_columns if isinstance(packing, Planes) else elements_of(self.format).together

    @property
    def chunks(self) -> int:
        return stored_columns(self.format, self.k) // self.chunk

    @property
    def groups(self) -> int:
        """Factors of one row: each for the values of so many chunks along K."""
        return self.format.scale_groups(self.k)

    def factor(self, block: Expr, group: Expr, lane: Expr) -> Expr:
        """The factor of row `lane` in a group along K, of a weight that has factors."""
        return self._factor(T.bind((block * self.groups + group) * LANES + lane))

    def _factor(self, at: Expr) -> Expr:
        assert self.scale is not None
        if self.format.grouping.scale == "f32":
            return T.bind(self.scale[at])
        if self.format.grouping.scale == "e8m0":
            word = self.scale[T.shift_right(at, T.int32(2))]
            return T.bind(e8m0(T.bind(bit_field(word, T.bitwise_and(at, T.int32(3)) * 8, 8))))
        half = bit_field(self.scale[T.shift_right(at, T.int32(1))], T.bitwise_and(at, T.int32(1)) * 16, 16)
        return T.bind(f16(T.bind(half)))

    @property
    def group_chunks(self) -> int:
        """Chunks of one row that have a factor in common."""
        return -(-self.chunks // self.groups)

    def scales(self, block: Expr, chunk: Expr, lane: Expr) -> Scales:
        """Those of row `lane` for the group of a chunk."""
        if self.scale is None:
            return Scales(None, None)
        group = T.floordiv(chunk, self.group_chunks) if self.groups > 1 else 0
        at = T.bind((block * self.groups + group) * LANES + lane)
        if self.zero is None:
            return Scales(self._factor(at), f32(self.format.zero_point))
        byte = bit_field(self.zero[T.shift_right(at, T.int32(2))], T.bitwise_and(at, T.int32(3)) * 8, 8)
        return Scales(self._factor(at), T.bind(T.Cast("float32", T.Cast("int32", byte))))

    def values(self, block: Expr, chunk: Expr, lane: Expr, scales: Scales) -> list[Expr]:
        """Row `lane`, k from chunk * self.chunk on, before the factor."""
        if self.format.element:
            at = T.bind((block * self.chunks + chunk) * LANES + lane)
            return FLOATS[self.format.element](self.data, at)
        numbers = NUMBERS[type(self.format.grid)]
        fields = self.codes(block, chunk, lane).fields()
        return [value for word, starts, bits in fields for value in numbers(word, starts, bits, scales.zero)]

    def codes(self, block: Expr, chunk: Expr, lane: Expr) -> ChunkCodes:
        """The codes of row `lane`, k from chunk * self.chunk on, read."""
        planes = planes_of(self.format)
        if planes.words == 1:
            return ChunkCodes(planes, [T.bind(self.data[T.bind((block * self.chunks + chunk) * LANES + lane)])])
        parts = planes.columns // planes.wide_columns  # chunks of a unit
        part = T.bind(T.floormod(chunk, parts))
        unit = T.bind((block * (self.chunks // parts) + T.floordiv(chunk, parts)) * planes.words)
        words = []
        for first, width, _ in planes.planes:
            shared = WORD_BITS // width // planes.wide_columns  # chunks that have bits in one word
            word = T.bind(self.data[(unit + first + T.floordiv(part, shared)) * LANES + lane])
            start = T.floormod(part, shared) * (planes.wide_columns // QUAD * width)
            words.append(word if shared == 1 else T.bind(T.shift_right(word, T.Cast("uint32", start))))
        return ChunkCodes(planes, words)

    def decode(self, block: Expr, chunk: Expr, lane: Expr) -> tuple[list[Expr], Expr | None]:
        """(values, factor of all of them or None) of row `lane`, k from chunk * self.chunk on."""
        scales = self.scales(block, chunk, lane)
        return self.values(block, chunk, lane, scales), scales.factor


@dataclass(frozen=True)
class ChunkCodes:
    """The codes of a chunk. words: of each plane, with the chunk's bits in the lowest fields."""

    planes: Planes
    words: list[Expr]

    def quads(self) -> Iterator[Expr]:
        """u32 of four codes each, in the order of K."""
        for number in range(self.planes.wide_columns // QUAD):
            yield reduce(T.bitwise_or, [self._field(*plane, number) for plane in enumerate(self.planes.planes)])

    def _field(self, plane: int, place: tuple[int, int, int], number: int) -> Expr:
        """The bits of a plane in the `number`th quad, at their place in a code."""
        _, width, below = place
        if width == 8:
            return self.words[plane]
        start = number * width
        shift, mask = T.shift_right if start >= below else T.shift_left, ((1 << width) - 1) * EACH << below
        return T.bitwise_and(shift(self.words[plane], T.uint32(abs(start - below))), T.uint32(mask))

    def fields(self) -> list[tuple[Expr, list[int], int]]:
        """(word, bit where each code begins, bits of a code), in the order of K."""
        if self.planes.words == 1:
            width = self.planes.bits
            starts = [at % QUAD * 8 + at // QUAD * width for at in range(self.planes.columns)]
            return [(self.words[0], starts, width)]
        return [(T.bind(quad), [0, 8, 16, 24], self.planes.bits) for quad in self.quads()]


@dataclass(frozen=True)
class Scales:
    """What values of a group have in common: (code - zero) * factor; None where codes are the values."""

    factor: Expr | None
    zero: Expr | None


def _f32(data: Buffer, at: Expr) -> list[Expr]:
    return [T.bind(data[at])]


def _f16(data: Buffer, at: Expr) -> list[Expr]:
    word = data[T.shift_right(at, T.int32(1))]
    return [T.bind(f16(T.bind(bit_field(word, T.bitwise_and(at, T.int32(1)) * 16, 16))))]


def _bf16(data: Buffer, at: Expr) -> list[Expr]:
    word = T.bind(data[at])
    return [low_bf16(word), high_bf16(word)]


def _each(number: Callable[[Expr], Expr], word: Expr, starts: Sequence[int], bits: int, zero: Expr) -> list[Expr]:
    codes = [T.bind(bit_field(word, start, bits)) for start in starts]
    return [T.bind(number(code)) for code in codes]


# Plain floats by element: (data, place of a chunk) -> its values.
FLOATS: Mapping[str, Callable[[Buffer, Expr], list[Expr]]] = {"f32": _f32, "f16": _f16, "bf16": _bf16}
# Codes by grid: (word, bit where each code begins, bits of a code, the code that stands for 0) -> their numbers.
NUMBERS: Mapping[type, Callable[[Expr, Sequence[int], int, Expr], list[Expr]]] = {
    Integers: numbers,
    E4M3: partial(_each, e4m3),
    E2M1: partial(_each, e2m1),
    NF4: partial(_each, partial(entry, NF4_VALUES)),
}


def supports(format: WeightFormat, op: str) -> bool:
    """Whether the operation can have weights of that format: what is looked up, or decoded."""
    if op == "take":
        return rows.NAME in format.packings
    return rows16.NAME in format.packings and (type(format.grid) in NUMBERS or format.element in FLOATS)
