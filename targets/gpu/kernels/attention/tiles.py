"""Products of 64 x 32 over 32 in shared memory, a workgroup each: a thread has every 16th row of every 8th column.

left f32 [64, 33] and right f32 [32, 33]; rows are padded, as banks are 32.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.targets import tir as T
from dsv3c.targets.gpu.kernels.frame import THREADS, Buffer, Expr, barrier, f32, local, shared, store

ROWS = 64
COLUMNS = 32  # and steps of the sums
STRIDE = COLUMNS + 1
SIDE_STEP = 8
ROW_STEP = THREADS // SIDE_STEP
TURNS, SIDE = ROWS // ROW_STEP, COLUMNS // SIDE_STEP


@dataclass(frozen=True)
class Sides:
    """What is multiplied. row, side: the first of the rows and columns of the product that a thread has."""

    left: Buffer
    right: Buffer
    row: Expr
    side: Expr

    @classmethod
    def of(cls, thread: Expr) -> Sides:
        """Made at the outermost scope of a kernel."""
        row, side = T.bind(T.floordiv(thread, SIDE_STEP)), T.bind(T.floormod(thread, SIDE_STEP))
        return cls(shared(ROWS * STRIDE), shared(COLUMNS * STRIDE), row, side)

    def multiply(self, sums: Buffer) -> None:
        """sums[i * SIDE + j] += left[row + 16 i] @ right[:, side + 8 j]; both may be written again after it."""
        barrier()
        with T.serial(0, COLUMNS) as k:
            left = [T.bind(self.left[(self.row + i * ROW_STEP) * STRIDE + k]) for i in range(TURNS)]
            right = [T.bind(self.right[k * STRIDE + self.side + j * SIDE_STEP]) for j in range(SIDE)]
            for i in range(TURNS):
                for j in range(SIDE):
                    store(sums, i * SIDE + j, sums[i * SIDE + j] + left[i] * right[j])
        barrier()


def zeros() -> Buffer:
    """Sums of a thread before anything is multiplied."""
    sums = local(TURNS * SIDE)
    for i in range(TURNS * SIDE):
        store(sums, i, f32(0))
    return sums
