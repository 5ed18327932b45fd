"""Products of many activation rows on the matrix instructions of a GPU, in tiles of 64 rows and 64 output rows.

A tile is of a workgroup: of K_TILE values of K at a time, both sides are staged in shared memory, in the form that the
instructions take; what they add up comes back by pairs of weight blocks, so that whoever needs two results together,
as gate and up of an expert, finds them in one thread.

`UNITS` are the ways to do it. Each requires a capability, see targets/gpu/capabilities.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets import tir as T
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.operands import Operand, View, view_of
from dsv3c.targets.gpu.kernels.frame import Buffers, Expr, Extent, Variant, prim_func, row_count, store
from dsv3c.targets.gpu.kernels.units.cooperative import CooperativeMatrices
from dsv3c.targets.gpu.kernels.units.dots import IntegerDots
from dsv3c.targets.gpu.kernels.units.mma import TensorCores
from dsv3c.targets.gpu.kernels.units.simdgroups import SimdgroupMatrices
from dsv3c.targets.gpu.kernels.units.unit import BLOCKS, TILE, Factors, Unit
from dsv3c.targets.gpu.kernels.weights import Weight

UNITS: tuple[Unit, ...] = (TensorCores(), SimdgroupMatrices(), CooperativeMatrices(), IntegerDots())


def units(weight: WeightFormat) -> tuple[Unit, ...]:
    """Those that multiply with such a weight."""
    return tuple(unit for unit in UNITS if unit.serves(weight))


def linear(unit: Unit, spec: Linear, operands: Sequence[Operand], out: View) -> Variant:
    """The form of a linear for any number of rows. out: where y goes."""
    view, blocks = view_of(spec.view, spec.heads, spec.k), -(-spec.n // LANES)
    runs = -(-blocks // BLOCKS)
    grid = (Extent(spec.heads * runs), Extent(1, spec.rows, TILE))

    def emit(buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        weight, count = Weight.of(buffers, "w", spec.weight, spec.n, spec.k), row_count(buffers, spec.rows)
        head = T.bind(T.floordiv(groups[0], runs))
        first = T.bind(T.floormod(groups[0], runs) * BLOCKS)
        first_row = T.bind(groups[1] * TILE)
        last = T.bind(T.max(count - 1, 0))

        def block(i: Expr) -> Expr:
            return T.bind(head * blocks + T.min(first + i, blocks - 1))

        def start(row: Expr) -> Expr:
            return T.bind(view.start(T.min(first_row + row, last), head))

        def keep(row: Expr, pair: Expr, lane: Expr, values: tuple[Expr, Expr]) -> None:
            m = T.bind(first_row + row)
            for i, value in enumerate(values):
                n = T.bind((first + pair * 2 + i) * LANES + lane)
                with T.If(T.And(m < count, n < spec.n)), T.Then():
                    store(buffers["y"], out.start(m, head) + n, value)

        unit.product(Factors(weight, block, buffers["x"], start), thread, unit.space(), keep)

    return Variant(grid, lambda: prim_func(operands, grid, emit), spec.rows, requires=frozenset({unit.capability}))
