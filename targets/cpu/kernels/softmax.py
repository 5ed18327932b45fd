"""What the kernels share of online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867)."""

from __future__ import annotations

from typing import Any

from dsv3c.targets import tir as T
from dsv3c.targets.cpu.intrinsics import splat, typed
from dsv3c.targets.cpu.kernels.vector import f32

Expr = Any

LOWEST = -1.0e30  # score of a masked slot and running maximum before the first


def masked(scores: Expr, last: Expr, lanes: int) -> Expr:
    """The scores of slots 0 … in the lanes, those past `last` lowered to LOWEST or below."""
    # The mask is arithmetic, 0 up to `last` and -1, -2, … past it: TVM's simplifier chokes on vectors of booleans.
    slots = T.Cast(typed("float32", lanes), T.ramp(T.int32(0), 1, lanes))
    past = T.min(splat(T.Cast("float32", last), lanes) - slots, f32(0, lanes))
    return scores + past * f32(-LOWEST, lanes)
