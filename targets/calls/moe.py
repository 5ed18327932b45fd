"""moe_gate_up and moe_down: the experts' feed-forward over the pairs that expert_order sorted."""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets.calls.router import ExpertOrder


@dataclass(frozen=True)
class MoeGateUp:
    """x [T, d] f32 or q8, order (see ExpertOrder), w packed [E', 2, i, d] -> y f32 [T*(k+s), i] = silu(gate) * up."""

    order: ExpertOrder
    d: int
    i: int
    weight: WeightFormat


@dataclass(frozen=True)
class MoeDown:
    """x [T*(k+s), i] f32 or q8, order, weights f32 [T, k], w packed [E', d, i] -> y f32 [T, d], mixed over experts."""

    order: ExpertOrder
    d: int
    i: int
    weight: WeightFormat
