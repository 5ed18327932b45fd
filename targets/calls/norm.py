"""rms_norm: y[m] = x[m] * rsqrt(mean(x[m]^2) + eps) * weight."""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.targets.calls.operands import CONTROL, Operand, Rows, View, view_of


@dataclass(frozen=True)
class RmsNorm:
    """x f32 through `view` [M, d], weight f32 [d], y f32 [M, d]."""

    rows: Rows
    d: int
    eps: float
    view: View | None = None


def rms_norm_operands(spec: RmsNorm) -> tuple[Operand, ...]:
    view = view_of(spec.view, 1, spec.d)
    return (
        CONTROL,
        Operand("x", "f32", spec.rows.maximum * view.row_stride),
        Operand("weight", "f32", spec.d),
        Operand("y", "f32", spec.rows.maximum * spec.d),
    )
