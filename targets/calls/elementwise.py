"""add, swiglu, concat and scale_rows over rows."""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.targets.calls.operands import CONTROL, Operand, Rows, View, view_of


@dataclass(frozen=True)
class Add:
    """y = a + b, all f32 [M, d]."""

    rows: Rows
    d: int


@dataclass(frozen=True)
class Swiglu:
    """x f32 [M, 2*d] -> y f32 [M, d] = silu(x[:, :d]) * x[:, d:]."""

    rows: Rows
    d: int


@dataclass(frozen=True)
class Concat:
    """y f32 [M, d1 + d2] = a [M, d1] | b [M, d2]."""

    rows: Rows
    d1: int
    d2: int


@dataclass(frozen=True)
class ScaleRows:
    """x f32 through `view` [M, d], factors f32 [blocks], positions i32 [M] -> y f32 [M, d].

    y = x * factors[positions / block], the last factor behind the last block.
    """

    rows: Rows
    d: int
    blocks: int
    block: int
    view: View | None = None


def add_operands(spec: Add) -> tuple[Operand, ...]:
    size = spec.rows.maximum * spec.d
    return (CONTROL, Operand("a", "f32", size), Operand("b", "f32", size), Operand("y", "f32", size))


def swiglu_operands(spec: Swiglu) -> tuple[Operand, ...]:
    size = spec.rows.maximum * spec.d
    return (CONTROL, Operand("x", "f32", 2 * size), Operand("y", "f32", size))


def concat_operands(spec: Concat) -> tuple[Operand, ...]:
    m = spec.rows.maximum
    a, b = Operand("a", "f32", m * spec.d1), Operand("b", "f32", m * spec.d2)
    return (CONTROL, a, b, Operand("y", "f32", m * (spec.d1 + spec.d2)))


def scale_rows_operands(spec: ScaleRows) -> tuple[Operand, ...]:
    m = spec.rows.maximum
    return (
        CONTROL,
        Operand("x", "f32", m * view_of(spec.view, 1, spec.d).row_stride),
        Operand("factors", "f32", spec.blocks),
        Operand("positions", "i32", m),
        Operand("y", "f32", m * spec.d),
    )
