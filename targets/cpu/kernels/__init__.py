"""CPU kernels, one module a family of ops.

A kernel is named by a frozen spec (sizes, views, formats). `operands(spec)` lists its arguments in order as
(role, IR dtype, elements): "control" first where M is dynamic, inputs in the op's order, outputs, then "scratch" that
lives only during the call. `build(spec, level)` gives the PrimFunc. All buffers are flat, 64-byte aligned and exactly
as long as `operands` says; the cache may have any length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsv3c.compiler.formats import rows, rows16
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets.calls.attention import MlaAbsorbed, MlaMaterialized
from dsv3c.targets.calls.cache import MlaWrite, mla_write_operands
from dsv3c.targets.calls.elementwise import (
    Add,
    Concat,
    ScaleRows,
    Swiglu,
    add_operands,
    concat_operands,
    scale_rows_operands,
    swiglu_operands,
)
from dsv3c.targets.calls.embedding import Take, take_operands
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.moe import MoeDown, MoeGateUp
from dsv3c.targets.calls.norm import RmsNorm, rms_norm_operands
from dsv3c.targets.calls.quantize import QuantizeRows
from dsv3c.targets.calls.rope import Rope, RopeTable, rope_operands, rope_table_operands
from dsv3c.targets.calls.router import (
    ExpertOrder,
    ExpertWeights,
    IdentityExperts,
    Router,
    RouterWeights,
    expert_weights_operands,
    identity_experts_operands,
    router_weights_operands,
)
from dsv3c.targets.calls.sparse import IndexTopk, IndexWrite, MlaSparse, index_write_operands
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels import (
    attention,
    cache,
    elementwise,
    embedding,
    index,
    index_topk,
    linear,
    materialized,
    moe,
    norm,
    quantize,
    rope,
    router,
)
from dsv3c.targets.cpu.kernels.decode import decodes
from dsv3c.targets.cpu.kernels.frame import Operand, PrimFunc
from dsv3c.targets.cpu.kernels.products import multiplies

_KERNELS: dict[type, tuple[Callable[[Any], tuple[Operand, ...]], Callable[[Any, IsaLevel], PrimFunc]]] = {
    MlaAbsorbed: (attention.operands, attention.build),
    MlaSparse: (attention.sparse_operands, attention.build),
    IndexTopk: (index_topk.operands, index_topk.build),
    IndexWrite: (index_write_operands, index.build),
    MlaWrite: (mla_write_operands, cache.build),
    Add: (add_operands, elementwise.build_add),
    Concat: (concat_operands, elementwise.build_concat),
    ScaleRows: (scale_rows_operands, elementwise.build_scale_rows),
    Swiglu: (swiglu_operands, elementwise.build_swiglu),
    Take: (take_operands, embedding.build),
    Linear: (linear.operands, linear.build),
    MlaMaterialized: (materialized.operands, materialized.build),
    MoeDown: (moe.down_operands, moe.build_down),
    MoeGateUp: (moe.gate_up_operands, moe.build_gate_up),
    RmsNorm: (rms_norm_operands, norm.build),
    QuantizeRows: (quantize.operands, quantize.build),
    Rope: (rope_operands, rope.build_rope),
    RopeTable: (rope_table_operands, rope.build_rope_table),
    ExpertOrder: (router.expert_order_operands, router.build_expert_order),
    ExpertWeights: (expert_weights_operands, router.build_expert_weights),
    IdentityExperts: (identity_experts_operands, router.build_identity_experts),
    Router: (router.router_operands, router.build_router),
    RouterWeights: (router_weights_operands, router.build_router_weights),
}

SPECS = tuple(_KERNELS)  # the kinds of specs


def supports(format: WeightFormat, op: str) -> bool:
    """Whether the operation can have weights of that format: what is looked up, what is multiplied."""
    if op == "take":
        return rows.NAME in format.packings
    found = format.integer_products or decodes(format) if op == "mla_materialized" else multiplies(format)
    return rows16.NAME in format.packings and found


def operands(spec: object) -> tuple[Operand, ...]:
    """Arguments of the kernel `spec` names, in call order."""
    return _KERNELS[type(spec)][0](spec)


def build(spec: object, level: IsaLevel) -> PrimFunc:
    """The kernel `spec` names, for `level`."""
    return _KERNELS[type(spec)][1](spec, level)
