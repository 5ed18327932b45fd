"""Matrices in the registers of a warp, for mma.m16n8k16: bfloat16 factors, pairs of neighbours along k in words, and
float32 sums.

What of them a thread has follows from its place (the PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point
type"), its group = thread % 32 / 4 and its member = thread % 4:

    a [16, 16], rows by k   rows group, group + 8;          k = 2 member, 2 member + 1, and both + 8
    b [16, 8], k by columns column group;                   the same k
    sums [16, 8]            rows group, group + 8;          columns 2 member, 2 member + 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsv3c.targets import tir as T
from dsv3c.targets.gpu.kernels.frame import Buffer, Expr

WARP = 32
ROWS, COLUMNS, K = 16, 8, 16
SUMS = 4  # of a thread: two of its first row, two of its second


@dataclass(frozen=True)
class Thread:
    """A thread of a workgroup."""

    thread: Expr
    warp: Expr
    group: Expr
    member: Expr

    @classmethod
    def of(cls, thread: Expr) -> Thread:
        return cls(
            thread,
            T.bind(T.shift_right(thread, T.int32(5))),
            T.bind(T.shift_right(T.bitwise_and(thread, T.int32(31)), T.int32(2))),
            T.bind(T.bitwise_and(thread, T.int32(3))),
        )


def pair(low: Expr, high: Expr) -> Expr:
    """Two float32 as bfloat16, to nearest even, the first in the low half of a word."""
    return T.bind(T.call_extern("uint32", "dsv3c_bf16x2", low, high))


def multiply(sums: Buffer, at: int, a: Sequence[Expr], b: Sequence[Expr]) -> None:
    """sums[at : at + 4] += a @ b. a: four words, those of the first eight k before the others, of either k row `group`
    before row `group` + 8; b: two words, by k."""
    T.evaluate(T.call_extern("void", "dsv3c_mma_bf16", T.address_of(sums[at]), *a, *b))
