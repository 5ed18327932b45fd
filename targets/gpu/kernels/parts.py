"""Kernels on a part of their weight, for devices that cannot bind all of it at once.

The parts of one weight are called one after the other and write to the same result: a part of a linear its columns, a
part of an embedding the rows it has, a part of the experts the pairs that chose them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.targets.calls.embedding import Take, take_operands
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.moe import MoeGateUp
from dsv3c.targets.calls.operands import Operand, View
from dsv3c.targets.gpu.kernels import experts, products, rows
from dsv3c.targets.gpu.kernels.experts import PairDown
from dsv3c.targets.gpu.kernels.frame import Variant

Whole = Linear | Take | MoeGateUp | PairDown


@dataclass(frozen=True)
class Part:
    """`whole` on the units [first, first + count) of its weight: row blocks of a linear with one head, rows of an
    embedding, experts."""

    whole: Whole
    first: int
    count: int


@dataclass(frozen=True)
class _Kind:
    """How a kernel is cut. role: of its weight. units: how many that has; every component holds them one behind the
    other. operands: of the whole. variants(whole, operands, held): on the units `held`."""

    role: str
    units: Callable[[Any], int]
    operands: Callable[[Any], tuple[Operand, ...]]
    variants: Callable[[Any, Sequence[Operand], range], tuple[Variant, ...]]


def _linear(whole: Linear, operands: Sequence[Operand], held: range) -> tuple[Variant, ...]:
    start = held.start * LANES
    own = replace(whole, n=min(whole.n - start, len(held) * LANES))
    return products.linear(own, operands, View(whole.n, offset=start))


_KINDS: Mapping[type, _Kind] = {
    Linear: _Kind("w", lambda whole: whole.heads * -(-whole.n // LANES), products.linear_operands, _linear),
    Take: _Kind("table", lambda whole: int(whole.v), take_operands, rows.take),
    MoeGateUp: _Kind("w", lambda whole: int(whole.order.total), experts.gate_up_operands, experts.gate_up),
    PairDown: _Kind("w", lambda whole: int(whole.spec.order.total), experts.pair_down_operands, experts.pair_down),
}


def can_be_cut(whole: object) -> TypeGuard[Whole]:
    """Whether there are kernels for a part of its weight: heads are not cut, nor is what lies across them."""
    return type(whole) in _KINDS and getattr(whole, "heads", 1) == 1


def weight_role(whole: Whole) -> str:
    return _KINDS[type(whole)].role


def units(whole: Whole) -> int:
    """Units of the weight."""
    return _KINDS[type(whole)].units(whole)


def part_operands(part: Part) -> tuple[Operand, ...]:
    """Those of the whole, of the weight only the part."""
    role, total = weight_role(part.whole), units(part.whole)

    def of_part(operand: Operand) -> Operand:
        if operand.size is None or operand.role.partition(".")[0] != role:
            return operand
        return operand._replace(size=operand.size // total * part.count)

    return tuple(map(of_part, _KINDS[type(part.whole)].operands(part.whole)))


def part(part: Part, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    return _KINDS[type(part.whole)].variants(part.whole, operands, range(part.first, part.first + part.count))
