"""Kernels on a part of their weight, for devices that cannot bind all of it at once.

The parts of one weight are called one after the other and write to the same result: a part of a linear its columns, a
part of an embedding the rows it has, a part of the experts the pairs that chose them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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


def weight_role(whole: Whole) -> str:
    return "table" if isinstance(whole, Take) else "w"


def units(whole: Whole) -> int:
    """Units of the weight; every component holds them one behind the other."""
    if isinstance(whole, Linear):
        return whole.heads * -(-whole.n // LANES)
    if isinstance(whole, Take):
        return whole.v
    return (whole.spec if isinstance(whole, PairDown) else whole).order.total


def whole_operands(whole: Whole) -> tuple[Operand, ...]:
    if isinstance(whole, Linear):
        return products.linear_operands(whole)
    if isinstance(whole, Take):
        return take_operands(whole)
    return experts.pair_down_operands(whole) if isinstance(whole, PairDown) else experts.gate_up_operands(whole)


def part_operands(part: Part) -> tuple[Operand, ...]:
    """Those of the whole, of the weight only the part."""
    role, total = weight_role(part.whole), units(part.whole)

    def of_part(operand: Operand) -> Operand:
        if operand.size is None or operand.role.partition(".")[0] != role:
            return operand
        return operand._replace(size=operand.size // total * part.count)

    return tuple(map(of_part, whole_operands(part.whole)))


def part(part: Part, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    whole, held = part.whole, range(part.first, part.first + part.count)
    if isinstance(whole, Linear):
        start = part.first * LANES
        columns = min(whole.n - start, part.count * LANES)
        own = replace(whole, n=columns)
        return products.linear(own, operands, View(whole.n, offset=start))
    if isinstance(whole, Take):
        return rows.take(whole, operands, held)
    if isinstance(whole, PairDown):
        return experts.pair_down(whole, operands, held)
    return experts.gate_up(whole, operands, held)
