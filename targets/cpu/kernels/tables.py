"""Codes of four bits looked up in tables of sixteen, in registers: bytes for integer products, float32 for decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dsv3c.targets import tir as T

Expr = Any

ENTRIES = 16
# By 32-bit lanes of a register; each sixteen bytes of it are looked up in sixteen of the table.
_BYTES = {4: "llvm.aarch64.neon.tbl1.v16i8", 8: "llvm.x86.avx2.pshuf.b", 16: "llvm.x86.avx512.pshuf.b.512"}
_NEON_FLOATS = "llvm.aarch64.neon.tbl4.v16i8"


def lookup_bytes(table: Sequence[int], codes: Expr, lanes: int) -> Expr:
    """The entry, below 256, of each byte of codes uint32 [lanes], these below 16; lanes: those of a register."""
    quads = [sum(table[at + i] << 8 * i for i in range(4)) for at in range(0, ENTRIES, 4)]
    entries, kind = _constant("uint32", quads * (lanes // 4)), f"int8x{4 * lanes}"
    found = T.call_llvm_pure_intrin(kind, _BYTES[lanes], _as(entries, kind), _as(codes, kind))
    return _as(found, f"uint32x{lanes}")


def lookup_floats(table: Sequence[float], words: Expr, start: int, lanes: int) -> Expr:
    """The float32 entry of the four bits from `start` on of each of uint32 [lanes]; lanes: those of a register."""
    if lanes == 4:
        return _neon_floats(table, words, start)
    index = _as(_shifted(words, start, lanes), f"int32x{lanes}")  # the instructions look at no higher bits
    if lanes == 16:
        return T.call_llvm_pure_intrin(
            "float32x16", "llvm.x86.avx512.permvar.sf.512", _constant("float32", table), index
        )
    low, high = (
        T.call_llvm_pure_intrin("float32x8", "llvm.x86.avx2.permps", _constant("float32", half), index)
        for half in (table[:8], table[8:])
    )
    top = _as(T.shift_left(words, T.broadcast(T.uint32(28 - start), 8)) if start < 28 else words, "int32x8")
    return T.Select(top < T.broadcast(T.int32(0), 8), high, low)


def _neon_floats(table: Sequence[float], words: Expr, start: int) -> Expr:
    """A table of sixty-four bytes: four of them for each lane."""
    code = T.bitwise_and(_shifted(words, start, 4), T.broadcast(T.uint32(ENTRIES - 1), 4))
    index = code * T.broadcast(T.uint32(0x04040404), 4) + T.broadcast(T.uint32(0x03020100), 4)
    parts = [_as(_constant("float32", table[at : at + 4]), "int8x16") for at in range(0, ENTRIES, 4)]
    return _as(T.call_llvm_pure_intrin("int8x16", _NEON_FLOATS, *parts, _as(index, "int8x16")), "float32x4")


def _shifted(words: Expr, start: int, lanes: int) -> Expr:
    return T.shift_right(words, T.broadcast(T.uint32(start), lanes)) if start else words


def _constant(element: str, values: Sequence[float]) -> Expr:
    make = T.float32 if element == "float32" else T.uint32
    return T.Shuffle([make(value) for value in values], list(range(len(values))))


def _as(value: Expr, kind: str) -> Expr:
    return T.reinterpret(kind, value)
