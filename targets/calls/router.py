"""Routing: which experts a token visits (router), with what weights (router_weights), in what order (expert_order)."""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.targets.calls.operands import CONTROL, Operand, Rows, View, view_of


@dataclass(frozen=True)
class Router:
    """logits f32 [M, experts], bias f32 [experts] if has_bias, y i32 [M, top_k]; scratch f32 [M, experts + n_group]."""

    rows: Rows
    experts: int
    n_group: int
    topk_group: int
    top_k: int
    scoring: str
    group_score: str
    has_bias: bool


@dataclass(frozen=True)
class RouterWeights:
    """logits f32 [M, experts], ids i32 [M, top_k], y f32 [M, top_k]."""

    rows: Rows
    experts: int
    top_k: int
    scoring: str
    norm_topk_prob: bool
    scale: float


@dataclass(frozen=True)
class ExpertWeights:
    """ids i32 [M, top_k], weights f32 [M, top_k] -> y f32 [M, top_k]: 0 for ids from `experts` on."""

    rows: Rows
    experts: int
    top_k: int


@dataclass(frozen=True)
class IdentityExperts:
    """x f32 through `view` [M, d], ids i32 and weights f32 [M, top_k] -> y f32 [M, d].

    y = x * (sum of the weights of ids from `experts` on).
    """

    rows: Rows
    d: int
    experts: int
    top_k: int
    view: View | None = None


@dataclass(frozen=True)
class ExpertOrder:
    """ids i32 [M, top_k]; y i32 [2 + 2E' + M(top_k + shared)], E' = experts + shared; scratch i32 [E'].

    y[0] is the number of active experts, y[1:] their ids in rising order, y[1+E':] where each one's pairs start (one
    more than active experts), y[2+2E':] the pairs p = m*(top_k + shared) + j sorted by expert, rising within one. Pairs
    of ids from `experts` on are not listed.
    """

    rows: Rows
    experts: int
    top_k: int
    shared: int

    @property
    def total(self) -> int:
        return self.experts + self.shared

    @property
    def per_token(self) -> int:
        return self.top_k + self.shared


def order_size(spec: ExpertOrder) -> int:
    """Elements of expert_order's result for the largest M."""
    return 2 + 2 * spec.total + spec.rows.maximum * spec.per_token


def router_weights_operands(spec: RouterWeights) -> tuple[Operand, ...]:
    m = spec.rows.maximum
    return (
        CONTROL,
        Operand("logits", "f32", m * spec.experts),
        Operand("ids", "i32", m * spec.top_k),
        Operand("y", "f32", m * spec.top_k),
    )


def expert_weights_operands(spec: ExpertWeights) -> tuple[Operand, ...]:
    size = spec.rows.maximum * spec.top_k
    return (CONTROL, Operand("ids", "i32", size), Operand("weights", "f32", size), Operand("y", "f32", size))


def identity_experts_operands(spec: IdentityExperts) -> tuple[Operand, ...]:
    m = spec.rows.maximum
    return (
        CONTROL,
        Operand("x", "f32", m * view_of(spec.view, 1, spec.d).row_stride),
        Operand("ids", "i32", m * spec.top_k),
        Operand("weights", "f32", m * spec.top_k),
        Operand("y", "f32", m * spec.d),
    )
