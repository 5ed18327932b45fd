"""Where absorbed attention cuts a context, and how the partial results of its chunks become one.

Both depend on the context alone. Sums of two chunks are brought to the larger of their two largest scores, from the
first chunk to the last: by the task that computed them all, or from the parts of several tasks. Their bits are equal.
"""

from __future__ import annotations

from typing import Any

from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.targets import tir as T
from dsv3c.targets.cpu.intrinsics import splat
from dsv3c.targets.cpu.kernels.attention_unit import PAGE, Unit
from dsv3c.targets.cpu.kernels.frame import Buffer, local
from dsv3c.targets.cpu.kernels.softmax import LOWEST
from dsv3c.targets.cpu.kernels.vector import WIDTH, columns, exp, f32, load, store

Expr = Any


def wanted(context: Expr, most: int, worth: int) -> Expr:
    """Chunks of a context, at most `most` and of `worth` slots at least; some may have none, see `cut`."""
    return T.bind(T.max(T.min(most, T.floordiv(context + (worth - 1), worth)), 1))


def cut(context: Expr, most: int, worth: int) -> tuple[Expr, Expr]:
    """(chunks a context is cut into, slots of each: whole pages)."""
    count = wanted(context, most, worth)
    length = T.bind(T.floordiv(T.floordiv(context + count - 1, count) + (PAGE - 1), PAGE) * PAGE)
    return T.bind(T.floordiv(context + length - 1, length)), length


def write(unit: Unit, sums: Expr, total: Expr) -> None:
    """y of the unit's heads from sums and totals that lie at these offsets."""
    rank = unit.spec.paging.rank
    with T.serial(0, unit.heads) as h:
        row, out = T.bind(sums + h * rank), _out(unit, h)
        inverse = T.bind(f32(1) / unit.scratch[total + h])

        def normalise(at: Expr, lanes: int) -> None:
            store(unit.buffers["y"], out + at, load(unit.scratch, row + at, lanes) * splat(inverse, lanes), lanes)

        columns(rank, normalise)


def _out(unit: Unit, h: Expr) -> Expr:
    return T.bind((unit.token * unit.spec.heads + unit.head + h) * unit.spec.paging.rank)


def _weigh(unit: Unit, part: Expr, largest: Buffer, total: Buffer, at: tuple[Expr, Expr]) -> tuple[Expr, Expr]:
    """[16] factors of the sums so far and of those that a part (so many elements behind the unit's) has; updates the
    largest score and the total, which lie at `at`. `fold` and `merge` go by it, so that both give the same bits."""
    scale = f32(unit.spec.scale, LANES)
    before = T.bind(load(largest, at[0], LANES))
    mine = T.bind(unit.get(unit.at.largest + part))
    after = T.bind(T.max(before, mine))
    factors = T.bind(exp((before - after) * scale, LANES)), T.bind(exp((mine - after) * scale, LANES))
    store(largest, at[0], after, LANES)
    old = T.bind(load(total, at[1], LANES) * factors[0])
    store(total, at[1], old + unit.get(unit.at.total + part) * factors[1], LANES)
    return factors


def fold(unit: Unit, begins: Expr) -> None:
    """Adds the unit's sums to the merged ones."""
    at, scratch, rank = unit.at, unit.scratch, unit.spec.paging.rank
    with T.If(begins), T.Then():
        unit.put(at.merged_largest, f32(LOWEST, LANES))
        unit.put(at.merged_total, f32(0, LANES))
        with T.serial(0, unit.heads) as h:
            row = T.bind(at.merged + h * rank)
            columns(rank, lambda c, lanes: store(scratch, row + c, f32(0, lanes), lanes))
    old, new = local("f32", LANES), local("f32", LANES)
    weights = _weigh(unit, T.int32(0), scratch, scratch, (at.merged_largest, at.merged_total))
    store(old, 0, weights[0], LANES)
    store(new, 0, weights[1], LANES)
    with T.serial(0, unit.heads) as h:
        row, merged = T.bind(at.sums + h * rank), T.bind(at.merged + h * rank)

        def column(c: Expr, lanes: int) -> None:
            kept = T.bind(load(scratch, merged + c, lanes) * splat(old[h], lanes))
            store(scratch, merged + c, load(scratch, row + c, lanes) * splat(new[h], lanes) + kept, lanes)

        columns(rank, column)


def merge(unit: Unit, h: Expr, used: Expr, most: int) -> None:
    """y of head `h` from the `used` parts that start with the unit's own."""
    scratch, rank, size, out = unit.scratch, unit.spec.paging.rank, unit.at.size, _out(unit, h)
    old, new = local("f32", most), local("f32", most)
    largest, total, factors = local("f32", LANES), local("f32", LANES), local("f32", 2 * LANES)
    store(largest, 0, f32(LOWEST, LANES), LANES)
    store(total, 0, f32(0, LANES), LANES)
    with T.serial(0, used) as i:
        weights = _weigh(unit, T.bind(i * size), largest, total, (0, 0))
        store(factors, 0, weights[0], LANES)
        store(factors, LANES, weights[1], LANES)
        store(old, i, factors[h], 1)
        store(new, i, factors[LANES + h], 1)
    inverse = T.bind(f32(1) / total[h])
    row = T.bind(unit.at.sums + h * rank)

    def column(at: Expr, lanes: int) -> None:
        acc = local("f32", WIDTH)
        store(acc, 0, f32(0, lanes), lanes)
        with T.serial(0, used) as i:
            kept = T.bind(load(acc, 0, lanes) * splat(old[i], lanes))
            mine = T.bind(load(scratch, row + i * size + at, lanes))
            store(acc, 0, mine * splat(new[i], lanes) + kept, lanes)
        store(unit.buffers["y"], out + at, load(acc, 0, lanes) * splat(inverse, lanes), lanes)

    columns(rank, column)
