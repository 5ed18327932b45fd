"""Rounding to integers and packing to rows16 in one go, for the machine that compiles weights.

The meaning is numpy's, `rows16.pack(quantize(w, format), format)`, to the bit, for weights that are finite. Sixteen
rows are turned into lanes: extremes, scales and words of codes then come out of whole vectors. Every operation is one
that IEEE 754 rounds in one way, and no product meets a sum that LLVM could fuse it with: the bytes are those of every
level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

from dsv3c.compiler.formats import rounding
from dsv3c.compiler.formats.grids import Integers
from dsv3c.compiler.formats.grouping import UNIT
from dsv3c.compiler.formats.packings import EACH, QUAD
from dsv3c.compiler.formats.rounding import SHORTEST
from dsv3c.compiler.formats.rows16 import LANES, NAME, planes_of
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets import tir as T
from dsv3c.targets.cpu.intrinsics import bf16_pair_to_f32, f16_to_f32, splat
from dsv3c.targets.cpu.kernels.frame import local
from dsv3c.targets.cpu.kernels.vector import f32, load, store, transpose

Expr = Any
Buffer = Any
PrimFunc = Any
Columns = Callable[[Expr], list[Expr]]  # UNIT columns of sixteen rows, by the number of the step

INFINITY = 0x7F800000  # the bits of float32
_MAGNITUDE = 0x7FFFFFFF
_SIZE = 1 << 31  # of every buffer: how long they are nobody asks
_POINTERS = {"data": "uint32", "zero": "uint8", "extremes": "float32", "largest": "int32"}


def takes(format: WeightFormat) -> bool:
    """Whether there is such a kernel for the format."""
    return format.rounding is rounding.nearest and NAME in format.packings


def build(format: WeightFormat, element: str) -> PrimFunc:
    """The function (w, data, scale, zero, extremes, largest, blocks, columns) of pointers and two counts, i32.

    w: `blocks` x 16 rows of `columns`, whole groups of the format, of the IR dtype f32, f16 or bf16, on four bytes.
    data, scale, zero: as rows16 has them, on 64 bytes. extremes: f32 [2], what weights lie between, for a format with
    one scale a matrix. largest: i32 [16], raised to the bits of the largest magnitudes: from INFINITY on there are
    weights that are not finite, and what was written means nothing.
    """
    from tvm.script.ir_builder import IRBuilder

    kernel = _Kernel(format, element)
    types = {"w": "float32" if element == "f32" else "uint32", "scale": kernel.scale_dtype, **_POINTERS}
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"tirx.noalias": True})
        pointers = {role: T.arg(role, T.handle(types[role])) for role in ROLES}
        blocks, columns = T.arg("blocks", T.int32()), T.arg("columns", T.int32())
        buffers = {
            role: T.decl_buffer((_SIZE,), types[role], data=pointer, align=4 if role in ("w", "extremes") else 64)
            for role, pointer in pointers.items()
        }
        with T.serial(0, blocks) as block:
            kernel.block(buffers, block, columns)
    return builder.get()


ROLES = ("w", "data", "scale", "zero", "extremes", "largest")


@dataclass(frozen=True)
class _Extremes:
    """Smallest and largest weights of a group in sixteen rows, in memory as `_settled` has them: TVM would take minutes
    for 32 minima that it can look through. LLVM has them in registers."""

    low: Buffer
    high: Buffer

    @classmethod
    def none(cls) -> _Extremes:
        return cls._of(_infinity(), f32(0, LANES) - _infinity())

    @classmethod
    def given(cls, pair: Buffer) -> _Extremes:
        return cls._of(splat(pair[0], LANES), splat(pair[1], LANES))

    @classmethod
    def _of(cls, *values: Expr) -> _Extremes:
        buffers = [local("f32", LANES) for _ in values]
        for buffer, value in zip(buffers, values, strict=True):
            store(buffer, 0, value, LANES)
        return cls(*buffers)

    def take(self, values: list[Expr]) -> None:
        for value in values:
            store(self.low, 0, T.min(load(self.low, 0, LANES), value), LANES)
            store(self.high, 0, T.max(load(self.high, 0, LANES), value), LANES)


@dataclass(frozen=True)
class _Scaled:
    """Of a group in sixteen rows: what its weights are divided by, and its zero point, float32 in every lane."""

    divisor: Expr
    zero: Expr


@dataclass(frozen=True)
class _Kernel:
    format: WeightFormat
    element: str

    @property
    def grid(self) -> Integers:
        assert isinstance(self.format.grid, Integers)
        return self.format.grid

    @property
    def scale_dtype(self) -> str:
        return "uint16" if self.format.grouping.scale == "f16" else "float32"

    def block(self, buffers: dict[str, Buffer], block: Expr, columns: Expr) -> None:
        """Sixteen rows, group by group."""
        steps, words = T.bind(T.floordiv(columns, UNIT)), UNIT if self.element == "f32" else UNIT // 2
        starts = [T.bind((block * LANES + row) * steps * words) for row in range(LANES)]

        def columns_of(step: Expr) -> list[Expr]:
            return self._columns(buffers["w"], [start + step * words for start in starts])

        short = 0 < self.format.grouping.size <= UNIT
        emit = self._short_groups if short else self._long_groups
        emit(buffers, columns_of, T.bind(block * steps), steps)

    def _short_groups(self, buffers: dict[str, Buffer], columns_of: Columns, first: Expr, steps: Expr) -> None:
        """Groups that stay in registers between extremes and codes. first: of all steps, UNIT columns each, that of the
        block."""
        size = self.format.grouping.size
        count = UNIT // size
        with T.serial(0, steps) as step:
            values = columns_of(step)
            groups = []
            for i in range(count):
                extremes = _Extremes.none()
                extremes.take(values[i * size : (i + 1) * size])
                groups.append(self._scaled(buffers, extremes, (first + step) * count + i))
            self._write(buffers, values, groups, first + step)

    def _long_groups(self, buffers: dict[str, Buffer], columns_of: Columns, first: Expr, steps: Expr) -> None:
        """Groups that are read a second time, from the cache, for their codes."""
        size = self.format.grouping.size
        inner = size // UNIT if size else steps
        with T.serial(0, T.floordiv(steps, inner)) as group:
            start = T.bind(group * inner)
            if self.format.grouping.per_tensor:
                extremes = _Extremes.given(buffers["extremes"])
            else:
                extremes = _Extremes.none()
                with T.serial(0, inner) as step:
                    extremes.take(columns_of(start + step))
            scaled = self._scaled(buffers, extremes, T.floordiv(first, inner) + group)
            with T.serial(0, inner) as step:
                self._write(buffers, columns_of(start + step), [scaled], first + start + step)

    def _write(self, buffers: dict[str, Buffer], values: list[Expr], groups: list[_Scaled], step: Expr) -> None:
        """The words of a step, whose columns lie in so many groups."""
        self._note_largest(buffers["largest"], values)
        each = len(values) // len(groups)
        codes = [self._code(value, groups[i // each]) for i, value in enumerate(values)]
        for i, word in enumerate(self._packed(codes)):
            store(buffers["data"], (step * self.grid.bits + i) * LANES, word, LANES)

    def _columns(self, w: Buffer, starts: list[Expr]) -> list[Expr]:
        """UNIT columns from the word of each row on, float32 with the rows as lanes."""
        if self.element == "f32":
            halves = [transpose([load(w, start + half, LANES) for start in starts]) for half in (0, LANES)]
            return [*halves[0], *halves[1]]
        # As float32, whatever the bits are: TVM's simplifier puts integers in for the names that they are bound to.
        pairs = transpose([T.reinterpret("float32x16", load(w, start, LANES)) for start in starts])
        split = bf16_pair_to_f32 if self.element == "bf16" else _f16_pair_to_f32
        return [T.bind(value) for pair in pairs for value in split(T.reinterpret("uint32x16", pair), LANES)]

    def _scaled(self, buffers: dict[str, Buffer], extremes: _Extremes, index: Expr) -> _Scaled:
        """Store scale and zero of the group `index`, see rounding.nearest."""
        nothing, own_zeros = f32(0, LANES), self.format.grouping.zero is not None
        low, high = load(extremes.low, 0, LANES), load(extremes.high, 0, LANES)
        if own_zeros:
            low, high = T.min(low, nothing), T.max(high, nothing)
        low, high = _unsigned_zero(low), _unsigned_zero(high)
        scale, divisor = self._stored_scale(_settled(self._exact_scale(low, high)))
        store(buffers["scale"], index * LANES, scale, LANES)
        divisor = _settled(T.Select(T.fabs(divisor) > nothing, divisor, _infinity()))
        if not own_zeros:
            return _Scaled(divisor, f32(self.grid.zero, LANES))
        zero = _settled(self._within(T.nearbyint((nothing - low) / divisor)))
        store(buffers["zero"], index * LANES, T.Cast("uint8x16", T.Cast("int32x16", zero)), LANES)
        return _Scaled(divisor, zero)

    def _exact_scale(self, low: Expr, high: Expr) -> Expr:
        grid, lowered = self.grid, _settled(f32(0, LANES) - low)
        if self.format.grouping.zero is not None:
            return (high - low) / f32(grid.highest - grid.lowest, LANES)
        below, above = grid.zero - grid.lowest, grid.highest - grid.zero
        if below == above:
            return T.max(high, lowered) / f32(above, LANES)
        return T.Select(lowered >= high, low, high) / f32(-below, LANES)

    def _stored_scale(self, exact: Expr) -> tuple[Expr, Expr]:
        """The scale as it is stored, and in float32."""
        if self.format.grouping.scale == "f32":
            return exact, exact
        bits = T.bind(T.reinterpret("uint16x16", T.Cast("float16x16", exact)))
        reached = T.fabs(_f16(bits)) * f32(SHORTEST, LANES)
        one = splat(T.uint16(1), LANES)  # to the bits: the next number away from 0
        bits = T.bind(T.Select(T.fabs(exact) > reached, bits + one, bits))
        return bits, _settled(_f16(bits))

    def _code(self, value: Expr, group: _Scaled) -> Expr:
        code = self._within(T.nearbyint(value / group.divisor) + group.zero)
        return T.bind(T.reinterpret("uint32x16", T.Cast("int32x16", code)))

    def _within(self, value: Expr) -> Expr:
        return T.min(T.max(value, f32(self.grid.lowest, LANES)), f32(self.grid.highest, LANES))

    def _packed(self, codes: list[Expr]) -> list[Expr]:
        """The words of UNIT codes, see packings.Planes."""
        planes, words = planes_of(self.format), []
        quads = [_joined(codes[at : at + QUAD], 8) for at in range(0, len(codes), QUAD)]
        together = planes.columns // QUAD
        for at in range(0, len(quads), together):
            for _, width, below in planes.planes:
                own = [_bits(quad, width, below, planes.bits) for quad in quads[at : at + together]]
                fields = 8 // width
                words += [_joined(own[i : i + fields], width) for i in range(0, together, fields)]
        return words

    def _note_largest(self, largest: Buffer, values: list[Expr]) -> None:
        magnitude = splat(T.int32(_MAGNITUDE), LANES)
        bits = [T.bitwise_and(T.reinterpret("int32x16", value), magnitude) for value in values]
        store(largest, 0, reduce(T.max, bits, load(largest, 0, LANES)), LANES)


def _settled(value: Expr) -> Expr:
    """float32 lanes that TVM's simplifier takes as they are, as frame.settled does of integers."""
    memory = local("f32", LANES)
    store(memory, 0, value, LANES)
    return T.bind(load(memory, 0, LANES))


def _infinity() -> Expr:
    return T.reinterpret("float32x16", splat(T.int32(INFINITY), LANES))


def _unsigned_zero(x: Expr) -> Expr:
    x = _settled(x)
    return _settled(T.Select(T.fabs(x) > f32(0, LANES), x, f32(0, LANES)))


def _f16(bits: Expr) -> Expr:
    return f16_to_f32(T.reinterpret("float16x16", bits), LANES)


def _f16_pair_to_f32(words: Expr, lanes: int) -> tuple[Expr, Expr]:
    """uint32 words of two float16 -> (low halves, high halves) as float32, exact."""
    high = T.shift_right(words, splat(T.uint32(16), lanes))
    return _f16(T.Cast("uint16x16", words)), _f16(T.Cast("uint16x16", high))


def _joined(parts: list[Expr], width: int) -> Expr:
    """Each `width` bits above the one before it."""
    shifted = [T.shift_left(part, splat(T.uint32(i * width), LANES)) if i else part for i, part in enumerate(parts)]
    return T.bind(reduce(T.bitwise_or, shifted))


def _bits(quad: Expr, width: int, below: int, of: int) -> Expr:
    """`width` bits of the codes in a quad, above the lowest `below`; of: how many bits codes have."""
    if width == of:
        return quad
    moved = T.shift_right(quad, splat(T.uint32(below), LANES)) if below else quad
    return T.bind(T.bitwise_and(moved, splat(T.uint32(((1 << width) - 1) * EACH), LANES)))
