"""moe_gate_up and moe_down: the experts' feed-forward over the pairs that expert_order sorted, no host in between.

A workgroup has one active expert and a run of its output rows, and walks the expert's pairs. moe_down writes a row for
each pair into scratch memory, which a second kernel mixes by token: no two workgroups add to the same number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets import tir as T
from dsv3c.targets.calls.moe import MoeDown, MoeGateUp
from dsv3c.targets.calls.operands import CONTROL, Operand, weight_operands
from dsv3c.targets.calls.router import ExpertOrder, order_size
from dsv3c.targets.gpu.kernels.frame import Buffers, Expr, Extent, Variant, barrier, f32, local, prim_func, store
from dsv3c.targets.gpu.kernels.functions import silu
from dsv3c.targets.gpu.kernels.products import FEW, FEW_TILE, ROW_BLOCKS, ROW_TILE, stream, tile, tile_space
from dsv3c.targets.gpu.kernels.rows import elementwise
from dsv3c.targets.gpu.kernels.units import matrix
from dsv3c.targets.gpu.kernels.units.unit import BLOCKS, TILE, Factors, Unit
from dsv3c.targets.gpu.kernels.weights import Weight


@dataclass(frozen=True)
class PairDown:
    """x f32 [pairs, i], order, w packed [E', d, i] -> scratch f32 [pairs, d]."""

    spec: MoeDown


@dataclass(frozen=True)
class PairSum:
    """scratch f32 [pairs, d], weights f32 [T, k] -> y f32 [T, d]; shared experts count with weight 1."""

    spec: MoeDown


@dataclass(frozen=True)
class _Product:
    """What both products share: `parts` results (gate and up, or one) of n rows each, over k columns.

    x_rows: activation row of a pair. role: the operand that gets a row for each pair. held: the experts that the weight
    has; pairs of others are left as they are.
    """

    order: ExpertOrder
    weight: WeightFormat
    n: int
    k: int
    parts: int
    x_row: Callable[[Expr], Expr]
    combine: Callable[[Sequence[Expr]], Expr]
    role: str
    held: range

    @property
    def blocks(self) -> int:
        return -(-self.n // LANES)


def gate_up_operands(spec: MoeGateUp) -> tuple[Operand, ...]:
    m = spec.order.rows.maximum
    return (
        CONTROL,
        Operand("x", "f32", m * spec.d),
        Operand("order", "i32", order_size(spec.order)),
        *weight_operands("w", spec.weight, (spec.order.total, 2), spec.i, spec.d),
        Operand("y", "f32", m * spec.order.per_token * spec.i),
    )


def _scratch(spec: MoeDown) -> Operand:
    return Operand("scratch", "f32", spec.order.rows.maximum * spec.order.per_token * spec.d)


def pair_down_operands(down: PairDown) -> tuple[Operand, ...]:
    spec = down.spec
    return (
        CONTROL,
        Operand("x", "f32", spec.order.rows.maximum * spec.order.per_token * spec.i),
        Operand("order", "i32", order_size(spec.order)),
        *weight_operands("w", spec.weight, (spec.order.total,), spec.d, spec.i),
        _scratch(spec),
    )


def pair_sum_operands(mix: PairSum) -> tuple[Operand, ...]:
    spec, m = mix.spec, mix.spec.order.rows.maximum
    y = Operand("y", "f32", m * spec.d)
    return (CONTROL, _scratch(spec), Operand("weights", "f32", m * spec.order.top_k), y)


def gate_up(spec: MoeGateUp, operands: Sequence[Operand], held: range | None = None) -> tuple[Variant, ...]:
    product = _Product(
        order=spec.order,
        weight=spec.weight,
        n=spec.i,
        k=spec.d,
        parts=2,
        x_row=lambda pair: T.floordiv(pair, spec.order.per_token),
        combine=lambda sums: silu(sums[0]) * sums[1],
        role="y",
        held=held or range(spec.order.total),
    )
    return _variants(product, operands)


def pair_down(down: PairDown, operands: Sequence[Operand], held: range | None = None) -> tuple[Variant, ...]:
    spec = down.spec
    product = _Product(
        order=spec.order,
        weight=spec.weight,
        n=spec.d,
        k=spec.i,
        parts=1,
        x_row=lambda pair: pair,
        combine=lambda sums: sums[0],
        role="scratch",
        held=held or range(spec.order.total),
    )
    return _variants(product, operands)


def pair_sum(mix: PairSum, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    spec, order = mix.spec, mix.spec.order

    def body(buffers: Buffers, row: Expr, column: Expr) -> None:
        total = local(1)
        store(total, 0, f32(0))
        for j in range(order.per_token):
            at = (row * order.per_token + j) * spec.d + column
            if j >= order.top_k:
                store(total, 0, total[0] + buffers["scratch"][at])
                continue
            weight = T.bind(buffers["weights"][row * order.top_k + j])
            with T.If(weight != f32(0)), T.Then():  # the row of a pair that is not listed was never written
                store(total, 0, total[0] + buffers["scratch"][at] * weight)
        store(buffers["y"], row * spec.d + column, total[0])

    return elementwise(operands, order.rows, spec.d, body)


def _variants(product: _Product, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    """One token, few pairs an expert, many on matrix instructions, many."""
    order = product.order
    few = max(FEW, 4 * order.experts // order.top_k)  # an expert has four pairs on average
    forms = [(1, 1), (FEW_TILE, few)]
    streamed = [_few(product, operands, rows, most) for rows, most in forms if most < order.rows.bound]
    fast = [_matrix(unit, product, operands) for unit in matrix.units(product.weight)]
    return (*streamed, *fast, _many(product, operands))


def _active(order: ExpertOrder) -> Extent:
    """A workgroup for each expert that may be active."""
    return Extent(order.per_token, order.rows, most=order.total)


def _few(product: _Product, operands: Sequence[Operand], rows: int, most: int) -> Variant:
    grid = (Extent(product.blocks), _active(product.order))

    def body(buffers: Buffers, weight: Weight, expert: _Expert, group: Expr, thread: Expr) -> None:
        blocks = [T.bind(expert.block(product, part) + group) for part in range(product.parts)]
        with T.serial(0, T.floordiv(expert.count + (rows - 1), rows)) as step:
            indices = [T.bind(step * rows + i) for i in range(rows)]
            pairs = [expert.pair(T.min(index, expert.count - 1)) for index in indices]
            starts = [T.bind(product.x_row(pair) * product.k) for pair in pairs]
            lane, sums = stream(weight, blocks, buffers["x"], starts, thread)
            n = T.bind(group * LANES + lane)
            with T.If(T.And(thread < LANES, n < product.n)), T.Then():
                for j, (index, pair) in enumerate(zip(indices, pairs, strict=True)):
                    value = product.combine([T.bind(sums(part, j)) for part in range(product.parts)])
                    with T.If(index < expert.count), T.Then():
                        store(buffers[product.role], pair * product.n + n, value)
            if rows > 1:  # one token has one pair of an expert: a single turn
                barrier()  # the sums are read before the next ones are written

    return Variant(grid, lambda: _kernel(product, operands, grid, body), product.order.rows, most)


def _many(product: _Product, operands: Sequence[Operand]) -> Variant:
    width = ROW_BLOCKS // product.parts  # blocks of one part
    grid = (Extent(-(-product.blocks // width)), _active(product.order))

    def body(buffers: Buffers, weight: Weight, expert: _Expert, group: Expr, thread: Expr) -> None:
        first = T.bind(group * width)
        within = [T.bind(T.min(first + i, product.blocks - 1)) for i in range(width)]
        blocks = [T.bind(expert.block(product, part) + block) for part in range(product.parts) for block in within]
        space = tile_space()
        with T.serial(0, T.floordiv(expert.count + (ROW_TILE - 1), ROW_TILE)) as step:

            def x(row: Expr, column: Expr) -> Expr:
                pair = expert.pair(T.min(step * ROW_TILE + row, expert.count - 1))
                return buffers["x"][T.bind(product.x_row(pair) * product.k) + column]

            found = tile(weight, blocks, x, thread, space)
            for row, sums in found.rows():
                index = T.bind(step * ROW_TILE + row)
                with T.If(index < expert.count), T.Then():
                    pair = expert.pair(index)
                    for i in range(width):
                        value = product.combine([sums[part * width + i] for part in range(product.parts)])
                        n = T.bind((first + i) * LANES + found.lane)
                        with T.If(n < product.n), T.Then():
                            store(buffers[product.role], pair * product.n + n, value)

    return Variant(grid, lambda: _kernel(product, operands, grid, body), product.order.rows)


def _matrix(unit: Unit, product: _Product, operands: Sequence[Operand]) -> Variant:
    """Blocks of gate and up take turns, so that a pair of blocks has both for the same rows."""
    width, parts = BLOCKS // product.parts, product.parts
    grid = (Extent(-(-product.blocks // width)), _active(product.order))

    def body(buffers: Buffers, weight: Weight, expert: _Expert, group: Expr, thread: Expr) -> None:
        first, space = T.bind(group * width), unit.space()

        def block(i: Expr) -> Expr:
            within = T.min(first + T.floordiv(i, parts), product.blocks - 1)
            return T.bind(expert.block(product, T.floormod(i, parts)) + within)

        with T.serial(0, T.floordiv(expert.count + (TILE - 1), TILE)) as step:

            def start(row: Expr) -> Expr:
                pair = expert.pair(T.min(step * TILE + row, expert.count - 1))
                return T.bind(product.x_row(pair) * product.k)

            def keep(row: Expr, two: Expr, lane: Expr, values: tuple[Expr, Expr]) -> None:
                index = T.bind(step * TILE + row)
                results = [product.combine(values)] if parts == 2 else values
                with T.If(index < expert.count), T.Then():
                    pair = expert.pair(index)
                    for i, value in enumerate(results):
                        n = T.bind((first + two * len(results) + i) * LANES + lane)
                        with T.If(n < product.n), T.Then():
                            store(buffers[product.role], pair * product.n + n, value)

            unit.product(Factors(weight, block, buffers["x"], start), thread, space, keep)
            barrier()  # all that was shared is read before the next rows are staged

    return Variant(
        grid, lambda: _kernel(product, operands, grid, body), product.order.rows, requires=frozenset({unit.capability})
    )


@dataclass(frozen=True)
class _Expert:
    """One active expert: its id, its range of the list of pairs."""

    order: ExpertOrder
    table: Expr
    id: Expr
    first: Expr
    count: Expr

    def pair(self, index: Expr) -> Expr:
        return T.bind(self.table[2 + 2 * self.order.total + self.first + index])

    def block(self, product: _Product, part: Expr) -> Expr:
        """The first row block of a part of its weight."""
        index = self.id - product.held.start if product.held.start else self.id
        return (index * product.parts + part) * product.blocks


_Body = Callable[[Buffers, Weight, _Expert, Expr, Expr], None]


def _kernel(product: _Product, operands: Sequence[Operand], grid: Sequence[Extent], body: _Body) -> object:
    """body(buffers, weight, expert, first workgroup index, thread) where the second one names an active expert."""
    total, held = product.order.total, product.held

    def emit(buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        weight = Weight.of(buffers, "w", product.weight, product.n, product.k)
        table, active = buffers["order"], groups[1]
        with T.If(active < table[0]), T.Then():
            first = T.bind(table[1 + total + active])
            count = T.bind(table[2 + total + active] - first)
            expert = _Expert(product.order, table, T.bind(table[1 + active]), first, count)
            if len(held) == total:
                body(buffers, weight, expert, groups[0], thread)
                return
            with T.If(T.And(expert.id >= held.start, expert.id < held.stop)), T.Then():
                body(buffers, weight, expert, groups[0], thread)

    return prim_func(operands, grid, emit)
