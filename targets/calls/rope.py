"""rope_table and rope: rotary position embedding (RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.targets.calls.operands import CONTROL, Operand, Rows, View, view_of


@dataclass(frozen=True)
class RopeTable:
    """positions i32 [M], inv_freq f32 [d/2] -> y f32 [M, d] = cos(pos * inv_freq) * scale | sin(...) * scale."""

    rows: Rows
    d: int
    scale: float


@dataclass(frozen=True)
class Rope:
    """x f32 through `view` [M, heads, d + rest], table f32 [M, d] -> y f32 [M, heads, d + rest]: rotated halves of the
    first d columns one after the other, then the others as they are.

    The pairs are the even and odd elements of those d when `interleave`, else their two halves.
    """

    rows: Rows
    heads: int
    d: int
    interleave: bool
    view: View | None = None
    rest: int = 0


def rope_table_operands(spec: RopeTable) -> tuple[Operand, ...]:
    m = spec.rows.maximum
    return (
        CONTROL,
        Operand("positions", "i32", m),
        Operand("inv_freq", "f32", spec.d // 2),
        Operand("y", "f32", m * spec.d),
    )


def rope_operands(spec: Rope) -> tuple[Operand, ...]:
    m = spec.rows.maximum
    return (
        CONTROL,
        Operand("x", "f32", m * view_of(spec.view, spec.heads, spec.d + spec.rest).row_stride),
        Operand("table", "f32", m * spec.d),
        Operand("y", "f32", m * spec.heads * (spec.d + spec.rest)),
    )
