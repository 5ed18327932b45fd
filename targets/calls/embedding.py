"""take: rows of a table by index, widened to float32."""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.targets.calls.operands import CONTROL, Operand, Rows


@dataclass(frozen=True)
class Take:
    """table [v, d] f32, f16, bf16, or i8 with scale f32 [v]; ids i32 [M]; y f32 [M, d]."""

    rows: Rows
    v: int
    d: int
    element: str = "f32"


def take_operands(spec: Take) -> tuple[Operand, ...]:
    size = spec.v * spec.d
    table = [Operand("table", spec.element, size)]
    if spec.element == "i8":
        table = [Operand("table.data", "i8", size), Operand("table.scale", "f32", spec.v)]
    ids = Operand("ids", "i32", spec.rows.maximum)
    return (CONTROL, *table, ids, Operand("y", "f32", spec.rows.maximum * spec.d))
