"""Products of float rows with panels of 32 columns, in 32-bit words: a float32, or a pair of bfloat16 where the level
multiplies those.

A panel holds words [k][32]. Two vectors of numbers that belong to the same sixteen lanes become one vector of pairs, or
stay two vectors; which number is whose partner is free, as long as both factors of a product have it the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.targets import tir as T
from dsv3c.targets.cpu.intrinsics import DOT2, splat
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.frame import TVM_DTYPES, Buffer, local
from dsv3c.targets.cpu.kernels.vector import columns, f32, load, load_f32, store

Expr = Any
Sums = list[list[Buffer]]  # [row][half of the panel], float32 of 16

PANEL = 2 * LANES


@dataclass(frozen=True)
class Words:
    """How numbers are stored in a buffer of float32 for products at `level`."""

    level: IsaLevel
    paired: bool

    @classmethod
    def of(cls, level: IsaLevel, element: str) -> Words:
        """Pairs where numbers of IR dtype `element` are bfloat16 anyway."""
        return cls(level, level.dot2 is not None and element == "bf16")

    @property
    def steps(self) -> int:
        """Numbers in a word."""
        return 2 if self.paired else 1

    @property
    def vectors(self) -> int:
        """Vectors of words that two vectors of numbers become."""
        return 2 // self.steps

    @property
    def rows(self) -> int:
        """Rows of a tile, as registers allow: two sums each."""
        return 4 if self.level.lanes == 8 else 8

    @property
    def llvm(self) -> str:
        """LLVM IR that a kernel with these products imports."""
        return DOT2[self.level.dot2].llvm if self.paired and self.level.dot2 else ""

    def put(self, buffer: Buffer, at: Expr, low: Expr, high: Expr, stride: int = LANES, lanes: int = LANES) -> None:
        """Store partners low and high as words at `at`, and at `at` + stride if they take two vectors."""
        for i, word in enumerate(self.words(low, high, lanes)):
            store(buffer, at + i * stride, word, lanes)

    def words(self, low: Expr, high: Expr, lanes: int = LANES) -> list[Expr]:
        """The vectors of words that partners low and high are."""
        return [_pairs(low, high, lanes)] if self.paired else [low, high]

    def neighbours(self, low: Expr, high: Expr) -> tuple[Expr, Expr]:
        """32 consecutive numbers ordered so that partners are neighbours: as `copy` leaves them."""
        if not self.paired:
            return low, high
        even, odd = (T.bind(T.Shuffle([low, high], list(range(start, 2 * LANES, 2)))) for start in (0, 1))
        return even, odd

    def copy(self, source: Buffer, start: Expr, n: int, element: str, out: Buffer, at: Expr) -> None:
        """n numbers of IR dtype `element` as words of neighbours, zeros behind them up to a whole vector of words."""
        width = LANES * self.steps

        def word(buffer: Buffer, where: Expr) -> Expr:
            if self.paired:
                return T.reinterpret(f"float32x{LANES}", load(buffer, where, width))
            return load_f32(buffer, where, width, element)

        whole = n // width
        if whole:
            with T.serial(0, whole) as i:
                store(out, at + i * LANES, word(source, start + i * width), LANES)
        if n % width:
            rest = local(element, width)
            store(rest, 0, T.broadcast(T.Cast(TVM_DTYPES[element], 0), width), width)
            behind = start + whole * width
            columns(n % width, lambda c, lanes: store(rest, c, load(source, behind + c, lanes), lanes))
            store(out, at + whole * LANES, word(rest, 0), LANES)

    def tile(
        self,
        buffer: Buffer,
        panel: Expr,
        count: Expr,
        words: list[Expr],
        finish: Callable[[int, Sums], None],
        start: Callable[[int, int, int], Expr] | None = None,
    ) -> None:
        """Products of rows of `count` words, which start at `words`, with a panel; all of them lie in `buffer`.

        finish(part, sums) is emitted for each part of a vector that fills a register: sums[row][half] at 0 are the
        columns half*16 + part of the panel. start(row, half, part): what the sums begin with; 0 without it.
        """
        lanes = self.level.lanes
        for part in range(0, LANES, lanes):
            sums = [[local("f32", LANES) for _ in range(2)] for _ in words]
            for row, halves in enumerate(sums):
                for half, total in enumerate(halves):
                    store(total, 0, start(row, half, part) if start else f32(0, lanes), lanes)
            with T.serial(0, count) as k:
                vectors = [T.bind(load(buffer, panel + k * PANEL + half * LANES + part, lanes)) for half in range(2)]
                for halves, word in zip(sums, words, strict=True):
                    factor = T.bind(splat(buffer[word + k], lanes))
                    for total, vector in zip(halves, vectors, strict=True):
                        store(total, 0, self._add_product(load(total, 0, lanes), vector, factor), lanes)
            finish(part, sums)

    def _add_product(self, acc: Expr, a: Expr, b: Expr) -> Expr:
        if self.paired and self.level.dot2:
            return DOT2[self.level.dot2].emit(acc, a, b)
        return a * b + acc


def _pairs(low: Expr, high: Expr, lanes: int) -> Expr:
    """bfloat16 pairs of two float32 vectors, ties away from zero: that takes a third of the instructions of even."""
    half, upper = splat(T.uint32(0x8000), lanes), splat(T.uint32(0xFFFF0000), lanes)
    bits = [T.reinterpret(f"uint32x{lanes}", value) + half for value in (low, high)]
    word = T.bitwise_or(T.shift_right(bits[0], splat(T.uint32(16), lanes)), T.bitwise_and(bits[1], upper))
    return T.reinterpret(f"float32x{lanes}", word)
