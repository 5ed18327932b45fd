"""linear and head_linear: y[t, h, n] = sum over k of x[t, h, k] * w[h, n, k]."""

from __future__ import annotations

from typing import Any

from dsv3c.targets import tir as T
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.operands import CONTROL, view_of, weight_operands
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.dot import Activation, Tile, store_tile
from dsv3c.targets.cpu.kernels.frame import (
    PARALLEL_WORK,
    Buffer,
    Operand,
    PrimFunc,
    activation_operands,
    loop,
    prim_func,
)
from dsv3c.targets.cpu.kernels.products import Indexed, dot_rows, imports
from dsv3c.targets.cpu.kernels.weights import Weight

Expr = Any


def operands(spec: Linear) -> tuple[Operand, ...]:
    m = spec.rows.maximum
    return (
        CONTROL,
        *activation_operands("x", spec.weight, m * spec.heads, spec.k, view_of(spec.view, spec.heads, spec.k), m),
        *weight_operands("w", spec.weight, (spec.heads,), spec.n, spec.k),
        Operand("y", "f32", m * spec.heads * spec.n),
    )


def build(spec: Linear, level: IsaLevel) -> PrimFunc:
    """Parallel over heads and runs of row blocks; each streams its weights once per tile of activation rows."""

    def body(buffers: dict[str, Buffer]) -> None:
        w = Weight.of(buffers, "w", spec.weight, spec.n, spec.k)
        x = Activation.of(buffers, "x", spec.weight, spec.k, view_of(spec.view, spec.heads, spec.k))
        count = T.bind(buffers["control"][spec.rows.index] * spec.rows.multiplier)
        work = spec.heads * spec.n * spec.k
        together = _together(spec, w, level)
        run = w.blocks // together  # each block of a tile has a run of its own: what is fetched ahead is its next
        parallel = work >= PARALLEL_WORK
        if parallel:
            w.announce(spec.heads * run, segments=spec.heads * together, blocks=run)
        with loop(spec.heads * run, parallel) as item:
            head = T.bind(T.floordiv(item, run))
            block = T.bind(T.floormod(item, run))

            def place(row: Expr) -> tuple[Expr, Expr]:
                return (row * spec.heads + head, 0) if spec.weight.integer_products else (row, head)

            def use(sums: Tile, rows: list[Expr]) -> None:
                offsets = [T.bind((row * spec.heads + head) * spec.n) for row in rows]
                for i in range(together):
                    store_tile(sums, buffers["y"], block + i * run, spec.n, offsets, which=i)

            blocks = [T.bind(head * w.blocks + block + i * run) for i in range(together)]
            dot_rows(level, w, x, blocks, Indexed(count, place, stride=spec.heads), use)

    return prim_func(operands(spec), body, imports(level, spec.weight))


def _together(spec: Linear, w: Weight, level: IsaLevel) -> int:
    """Blocks that share a tile: of the few that a head has, one run is read a fifth faster than two (Zen 4, Moonlight's
    heads in int4-g32). Tile registers multiply two at a time."""
    return 1 if spec.heads > 1 and level.matrix is None else w.together(level)
