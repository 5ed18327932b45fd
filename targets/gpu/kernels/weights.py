"""Packed weights as kernels read them: words decoded in registers."""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.compiler.formats.quant import QuantSpec
from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.targets import tir as T
from dsv3c.targets.gpu.kernels.frame import Buffer, Buffers, Expr, f32
from dsv3c.targets.gpu.kernels.words import bit_field, e4m3, f16, high_bf16, low_bf16, numbers


@dataclass(frozen=True)
class Weight:
    """A packed weight; blocks of sixteen rows count through all heads or experts."""

    data: Buffer
    scale: Buffer | None
    zero: Buffer | None
    spec: QuantSpec
    n: int
    k: int

    @classmethod
    def of(cls, buffers: Buffers, role: str, spec: QuantSpec, n: int, k: int) -> Weight:
        return cls(buffers[f"{role}.data"], buffers.get(f"{role}.scale"), buffers.get(f"{role}.zero"), spec, n, k)

    @property
    def blocks(self) -> int:
        """Blocks of one head or expert."""
        return -(-self.n // LANES)

    @property
    def chunk(self) -> int:
        """Values of one row that are decoded together: those of a word, or one."""
        if self.spec.is_float:
            return 2 if self.spec.element == "bf16" else 1
        return 32 // self.spec.bits

    @property
    def chunks(self) -> int:
        return self.spec.padded_k(self.k) // self.chunk

    @property
    def groups(self) -> int:
        """Factors of one row: each for the values of so many chunks along K."""
        return self.spec.scale_groups(self.k)

    def factor(self, block: Expr, group: Expr, lane: Expr) -> Expr:
        """The factor of row `lane` in a group along K, of a weight that has factors."""
        return self._factor(T.bind((block * self.groups + group) * LANES + lane))

    def _factor(self, at: Expr) -> Expr:
        assert self.scale is not None
        if self.spec.scale_dtype == "f32":
            return T.bind(self.scale[at])
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
            return Scales(self._factor(at), f32(self.spec.zero_point))
        byte = bit_field(self.zero[T.shift_right(at, T.int32(2))], T.bitwise_and(at, T.int32(3)) * 8, 8)
        return Scales(self._factor(at), T.bind(T.Cast("float32", T.Cast("int32", byte))))

    def values(self, block: Expr, chunk: Expr, lane: Expr, scales: Scales) -> list[Expr]:
        """Row `lane`, k from chunk * self.chunk on, before the factor."""
        at = T.bind((block * self.chunks + chunk) * LANES + lane)
        if self.spec.element == "f32":
            return [T.bind(self.data[at])]
        if self.spec.element == "f16":
            word = self.data[T.shift_right(at, T.int32(1))]
            return [T.bind(f16(T.bind(bit_field(word, T.bitwise_and(at, T.int32(1)) * 16, 16))))]
        word = T.bind(self.data[at])
        if self.spec.element == "bf16":
            return [low_bf16(word), high_bf16(word)]
        if self.spec.is_fp8:
            codes = [T.bind(bit_field(word, start, 8)) for start in (0, 8, 16, 24)]
            return [T.bind(e4m3(code)) for code in codes]
        # Of int4, byte j has k = j in its low and k = 4 + j in its high nibble.
        starts = [0, 8, 16, 24] if self.spec.bits == 8 else [0, 8, 16, 24, 4, 12, 20, 28]
        return numbers(word, starts, self.spec.bits, scales.zero)

    def decode(self, block: Expr, chunk: Expr, lane: Expr) -> tuple[list[Expr], Expr | None]:
        """(values, factor of all of them or None) of row `lane`, k from chunk * self.chunk on."""
        scales = self.scales(block, chunk, lane)
        return self.values(block, chunk, lane, scales), scales.factor


@dataclass(frozen=True)
class Scales:
    """What values of a group have in common: (code - zero) * factor; None where codes are the values."""

    factor: Expr | None
    zero: Expr | None
