"""Sparse attention: index_write and index_topk, which keep an indexer's keys and choose positions by them, and
mla_sparse, attention in latent space over these alone.

A row of the keys' cache is `paging.rank` columns, `paging.d` is 0; they are numbers, float32 or bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.targets.calls.cache import Paging
from dsv3c.targets.calls.operands import CONTROL, Operand, Rows, View, view_of


@dataclass(frozen=True)
class IndexWrite:
    """cache row of each token = layer_norm(k) * weight + bias, k f32 through `view` [T, rank], of which the first
    `rotated` columns are turned by table f32 [T, rotated]."""

    rows: Rows
    paging: Paging
    rotated: int
    eps: float
    interleave: bool
    view: View | None = None


@dataclass(frozen=True)
class IndexTopk:
    """q f32 [T, heads, rank], weights f32 [T, heads], cache, … -> y i32 [T, k]: rising positions, then -1."""

    rows: Rows
    heads: int
    k: int
    paging: Paging


@dataclass(frozen=True)
class MlaSparse:
    """q_latent f32 [T, heads, rank], q_pe f32 [T, heads, d], cache, chosen i32 [T, k], … -> y f32 [T, heads, rank]."""

    rows: Rows
    heads: int
    k: int
    paging: Paging
    scale: float


def index_write_operands(spec: IndexWrite) -> tuple[Operand, ...]:
    paging, m = spec.paging, spec.rows.maximum
    return (
        CONTROL,
        paging.cache,
        Operand("k", "f32", m * view_of(spec.view, 1, paging.rank).row_stride),
        Operand("weight", "f32", paging.rank),
        Operand("bias", "f32", paging.rank),
        Operand("table", "f32", m * spec.rotated),
        *paging.operands(m),
    )


def index_topk_operands(spec: IndexTopk, scratch: int) -> tuple[Operand, ...]:
    """scratch: elements of 32 bits that a target's kernel works in."""
    paging, m = spec.paging, spec.rows.maximum
    return (
        CONTROL,
        Operand("q", "f32", m * spec.heads * paging.rank),
        Operand("weights", "f32", m * spec.heads),
        paging.cache,
        *paging.operands(m),
        Operand("y", "i32", m * spec.k),
        Operand("scratch", "f32", scratch),
    )


def mla_sparse_operands(spec: MlaSparse, scratch: int) -> tuple[Operand, ...]:
    """scratch: elements that a target's kernel works in."""
    paging, m = spec.paging, spec.rows.maximum
    return (
        CONTROL,
        Operand("q_latent", "f32", m * spec.heads * paging.rank),
        Operand("q_pe", "f32", m * spec.heads * paging.d),
        paging.cache,
        Operand("chosen", "i32", m * spec.k),
        *paging.operands(m),
        Operand("y", "f32", m * spec.heads * paging.rank),
        Operand("scratch", "f32", scratch),
    )
