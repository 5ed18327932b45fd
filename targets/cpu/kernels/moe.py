"""moe_gate_up and moe_down: the experts' feed-forward over the pairs that expert_order sorted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.targets import tir as T
from dsv3c.targets.calls.moe import MoeDown, MoeGateUp
from dsv3c.targets.calls.operands import CONTROL, View, weight_operands
from dsv3c.targets.calls.router import ExpertOrder, order_size
from dsv3c.targets.cpu.intrinsics import splat
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.dot import Activation, Tile, store_block, store_tile
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
from dsv3c.targets.cpu.kernels.vector import f32, load, silu, store
from dsv3c.targets.cpu.kernels.weights import Weight

Expr = Any

DOWN_TASKS = 16  # tasks of moe_down at least, however many row blocks one could take


def gate_up_operands(spec: MoeGateUp) -> tuple[Operand, ...]:
    m = spec.order.rows.maximum
    return (
        CONTROL,
        *activation_operands("x", spec.weight, m, spec.d, View(spec.d), m),
        Operand("order", "i32", order_size(spec.order)),
        *weight_operands("w", spec.weight, (spec.order.total, 2), spec.i, spec.d),
        Operand("y", "f32", m * spec.order.per_token * spec.i),
    )


def down_operands(spec: MoeDown) -> tuple[Operand, ...]:
    m = spec.order.rows.maximum
    pairs = m * spec.order.per_token
    return (
        CONTROL,
        *activation_operands("x", spec.weight, pairs, spec.i, View(spec.i), pairs),
        Operand("order", "i32", order_size(spec.order)),
        Operand("weights", "f32", m * spec.order.top_k),
        *weight_operands("w", spec.weight, (spec.order.total,), spec.d, spec.i),
        Operand("y", "f32", m * spec.d),
    )


@dataclass(frozen=True)
class _Expert:
    """One active expert: its id and its range of the list of pairs."""

    id: Expr
    first: Expr
    count: Expr


def _expert(order: Buffer, spec: ExpertOrder, active: Expr) -> _Expert:
    first = T.bind(order[1 + spec.total + active])
    return _Expert(T.bind(order[1 + active]), first, T.bind(order[2 + spec.total + active] - first))


def _pair(order: Buffer, spec: ExpertOrder, expert: _Expert, index: Expr) -> Expr:
    return T.bind(order[2 + 2 * spec.total + expert.first + index])


def build_gate_up(spec: MoeGateUp, level: IsaLevel) -> PrimFunc:
    """Parallel over active experts and row blocks.

    The last experts come first: the shared ones, which have every token, would keep one thread busy at the end.
    """
    order_spec = spec.order

    def body(buffers: dict[str, Buffer]) -> None:
        w = Weight.of(buffers, "w", spec.weight, spec.i, spec.d)
        x = Activation.of(buffers, "x", spec.weight, spec.d, View(spec.d))
        order, y = buffers["order"], buffers["y"]
        active = T.bind(order[0])
        items = T.bind(active * w.blocks)
        parallel = order_spec.per_token * 2 * spec.i * spec.d >= PARALLEL_WORK
        if parallel:
            w.announce(items, segments=order_spec.total * 2, blocks=w.blocks)
        with loop(items, parallel) as item:
            expert = _expert(order, order_spec, active - 1 - T.floordiv(item, w.blocks))
            block = T.bind(T.floormod(item, w.blocks))
            gate = T.bind(expert.id * (2 * w.blocks) + block)

            def place(index: Expr) -> tuple[Expr, Expr]:
                return T.bind(T.floordiv(_pair(order, order_spec, expert, index), order_spec.per_token)), 0

            def use(sums: Tile, indices: list[Expr]) -> None:
                pairs = [_pair(order, order_spec, expert, index) for index in indices]
                for row, gate_sums in enumerate(sums.sums[0]):
                    for part in range(0, LANES, level.lanes):
                        value = silu(sums.part(0, row, part), level.lanes) * sums.part(1, row, part)
                        store(gate_sums, part, value, level.lanes)
                store_tile(sums, y, block, spec.i, [T.bind(pair * spec.i) for pair in pairs])

            dot_rows(level, w, x, [gate, gate + w.blocks], Indexed(expert.count, place), use)

    return prim_func(gate_up_operands(spec), body, imports(level, spec.weight))


def build_down(spec: MoeDown, level: IsaLevel) -> PrimFunc:
    """Parallel over runs of row blocks: a task owns its columns of y and adds the experts in rising order."""
    order_spec = spec.order

    def body(buffers: dict[str, Buffer]) -> None:
        w = Weight.of(buffers, "w", spec.weight, spec.d, spec.i)
        x = Activation.of(buffers, "x", spec.weight, spec.i, View(spec.i))
        order, y = buffers["order"], buffers["y"]
        tokens = T.bind(buffers["control"][order_spec.rows.index])
        together = w.together(level)
        run = max(1, min(level.tuning.down_blocks, w.blocks // DOWN_TASKS)) // together * together or together

        def clear(block: Expr) -> None:
            def zero(_: int, offset: Expr, at: int, lanes: int) -> None:
                store(y, offset + block * LANES + at, f32(0, lanes), lanes)

            with T.serial(0, tokens) as t:
                store_block(level.lanes, block, spec.d, [T.bind(t * spec.d)], zero)

        def accumulate(block: Expr, sums: list[Buffer], factors: list[Expr], offsets: list[Expr]) -> None:
            def add(row: int, offset: Expr, at: int, lanes: int) -> None:
                where = T.bind(offset + block * LANES + at)
                value = load(sums[row], at, lanes) * splat(factors[row], lanes)
                store(y, where, load(y, where, lanes) + value, lanes)

            store_block(level.lanes, block, spec.d, offsets, add)

        def add_expert(expert: _Expert, blocks: list[Expr]) -> None:

            def place(index: Expr) -> tuple[Expr, Expr]:
                return _pair(order, order_spec, expert, index), 0

            def use(sums: Tile, indices: list[Expr]) -> None:
                pairs = [_pair(order, order_spec, expert, index) for index in indices]
                rows = [T.bind(T.floordiv(pair, order_spec.per_token)) for pair in pairs]
                factors = [_factor(buffers["weights"], order_spec, pair) for pair in pairs]
                for i in range(1, len(indices)):  # a clamped index repeats the one before it: count it once
                    factors[i] = T.bind(T.Select(indices[i] > indices[i - 1], factors[i], f32(0)))

                offsets = [T.bind(row * spec.d) for row in rows]
                for block, block_sums in zip(blocks, sums.sums, strict=True):
                    accumulate(block, block_sums, factors, offsets)

            where = [expert.id * w.blocks + block for block in blocks]
            dot_rows(level, w, x, where, Indexed(expert.count, place), use)

        runs = -(-w.blocks // run)
        parallel = order_spec.per_token * spec.i * spec.d >= PARALLEL_WORK
        if parallel:
            w.announce(runs, segments=order_spec.total, blocks=w.blocks, run=run)
        with loop(runs, parallel) as item:
            count = T.bind(T.min(w.blocks - item * run, run))
            part = T.bind(T.floordiv(count, together))  # each block of a tile has its own: what is fetched is its next
            with T.serial(0, count) as i:
                clear(T.bind(item * run + i))
            with T.serial(0, order[0]) as active:
                expert = _expert(order, order_spec, active)
                with T.serial(0, part) as i:
                    add_expert(expert, [T.bind(item * run + j * part + i) for j in range(together)])

    return prim_func(down_operands(spec), body, imports(level, spec.weight))


def _factor(weights: Buffer, spec: ExpertOrder, pair: Expr) -> Expr:
    """Mixing weight of a pair: 1 for shared experts."""
    slot = T.bind(T.floormod(pair, spec.per_token))
    at = T.floordiv(pair, spec.per_token) * spec.top_k + T.min(slot, spec.top_k - 1)
    return T.bind(T.Select(slot < spec.top_k, weights[at], f32(1)))
