"""Codes of four bits looked up in tables of sixteen bytes, in registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dsv3c.targets import tir as T

Expr = Any

ENTRIES = 16
# By 32-bit lanes of a register; each sixteen bytes of it are looked up in sixteen of the table.
_BYTES = {4: "llvm.aarch64.neon.tbl1.v16i8", 8: "llvm.x86.avx2.pshuf.b", 16: "llvm.x86.avx512.pshuf.b.512"}


def lookup_bytes(table: Sequence[int], codes: Expr, lanes: int) -> Expr:
    """The entry, below 256, of each byte of codes uint32 [lanes], these below 16; lanes: those of a register."""
    quads = [sum(table[at + i] << 8 * i for i in range(4)) for at in range(0, ENTRIES, 4)]
    entries, kind = _constant(quads * (lanes // 4)), f"int8x{4 * lanes}"
    found = T.call_llvm_pure_intrin(kind, _BYTES[lanes], _as(entries, kind), _as(codes, kind))
    return _as(found, f"uint32x{lanes}")


def _constant(values: Sequence[int]) -> Expr:
    return T.Shuffle([T.uint32(value) for value in values], list(range(len(values))))


def _as(value: Expr, kind: str) -> Expr:
    return T.reinterpret(kind, value)
