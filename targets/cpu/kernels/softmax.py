"""One step of online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867) over sixteen slots in the lanes."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from dsv3c.targets.cpu.intrinsics import splat, typed
from dsv3c.targets.cpu.kernels.vector import add, exp, f32, horizontal

Expr = Any

BLOCK = 16  # slots of one softmax step; pages hold whole blocks
LOWEST = -1.0e30  # score of a masked slot and running maximum before the first


def softmax_step(scores: Expr, last: Expr, before: Expr) -> tuple[Expr, Expr, Expr, Expr]:
    """One step over 16 scaled scores, those past slot `last` masked, with the running maximum `before`.

    Returns (probabilities x16 relative to the new maximum, their sum, the new maximum, the factor that takes sums
    relative to the old maximum to the new one).
    """
    # Masks are arithmetic, 0 up to `last` and -1, -2, … past it: TVM's simplifier chokes on vectors of booleans.
    slots = T.Cast(typed("float32", BLOCK), T.ramp(T.int32(0), 1, BLOCK))
    past = T.bind(T.min(splat(T.Cast("float32", last), BLOCK) - slots, f32(0, BLOCK)))
    masked = T.bind(scores + past * f32(-LOWEST, BLOCK))
    after = T.bind(T.max(before, horizontal(masked, BLOCK, T.max)))
    kept = T.max(past + f32(1, BLOCK), f32(0, BLOCK))
    probabilities = T.bind(exp(masked - splat(after, BLOCK), BLOCK) * kept)
    return probabilities, horizontal(probabilities, BLOCK, add), after, T.bind(exp(before - after, 1))
