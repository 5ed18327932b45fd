"""add, swiglu and concat over rows."""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.targets.calls.operands import CONTROL, Operand, Rows


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
