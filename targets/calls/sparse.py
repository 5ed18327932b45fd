"""Sparse attention: index_write and index_topk, which choose what a token attends to, and mla_sparse, which does.

The cache of keys has rows of `paging.rank` columns, `paging.d` is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.targets.calls.attention import MlaAbsorbed
from dsv3c.targets.calls.cache import Paging
from dsv3c.targets.calls.operands import CONTROL, Operand, Rows, View, view_of


@dataclass(frozen=True)
class IndexWrite:
    """cache row of each token = layer_norm(x) * weight + bias, of which the first `rotated` columns are turned by table
    f32 [T, rotated]; x f32 through `view` [T, D]."""

    rows: Rows
    paging: Paging
    rotated: int
    eps: float
    interleave: bool
    view: View | None = None


@dataclass(frozen=True)
class IndexTopk:
    """q f32 [T, heads, D], weights f32 [T, heads], cache, … -> y i32 [T, k]: the positions up to the token's own with
    the best sums over heads of weights * relu(q . key), in rising order, then -1."""

    rows: Rows
    heads: int
    paging: Paging
    k: int


@dataclass(frozen=True)
class MlaSparse(MlaAbsorbed):
    """As MlaAbsorbed, over the positions chosen i32 [T, k] alone, as index_topk gives them."""

    k: int


def index_write_operands(spec: IndexWrite) -> tuple[Operand, ...]:
    paging, m = spec.paging, spec.rows.maximum
    return (
        CONTROL,
        paging.cache,
        Operand("x", "f32", m * view_of(spec.view, 1, paging.width).row_stride),
        Operand("weight", "f32", paging.width),
        Operand("bias", "f32", paging.width),
        Operand("table", "f32", m * spec.rotated),
        *paging.operands(m),
    )


def index_topk_operands(spec: IndexTopk) -> tuple[Operand, ...]:
    """Without scratch."""
    paging, m = spec.paging, spec.rows.maximum
    return (
        CONTROL,
        Operand("q", "f32", m * spec.heads * paging.width),
        Operand("weights", "f32", m * spec.heads),
        paging.cache,
        *paging.operands(m),
        Operand("y", "i32", m * spec.k),
    )
