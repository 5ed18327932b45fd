"""CPU kernels, one module a family of ops.

A kernel is named by a frozen spec (sizes, views, formats). `operands(spec)` lists its arguments in order as
(role, IR dtype, elements): "control" first where M is dynamic, inputs in the op's order, outputs, then "scratch" that
lives only during the call. `build(spec, level)` gives the PrimFunc. All buffers are flat, 64-byte aligned and exactly
as long as `operands` says; the cache may have any length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels import (
    attention,
    cache,
    elementwise,
    embedding,
    linear,
    materialized,
    moe,
    norm,
    quantize,
    rope,
    router,
)
from dsv3c.targets.cpu.kernels.frame import Operand, PrimFunc

_KERNELS: dict[type, tuple[Callable[[Any], tuple[Operand, ...]], Callable[[Any, IsaLevel], PrimFunc]]] = {
    attention.MlaAbsorbed: (attention.operands, attention.build),
    cache.MlaWrite: (cache.operands, cache.build),
    elementwise.Add: (elementwise.add_operands, elementwise.build_add),
    elementwise.Concat: (elementwise.concat_operands, elementwise.build_concat),
    elementwise.Swiglu: (elementwise.swiglu_operands, elementwise.build_swiglu),
    embedding.Take: (embedding.operands, embedding.build),
    linear.Linear: (linear.operands, linear.build),
    materialized.MlaMaterialized: (materialized.operands, materialized.build),
    moe.MoeDown: (moe.down_operands, moe.build_down),
    moe.MoeGateUp: (moe.gate_up_operands, moe.build_gate_up),
    norm.RmsNorm: (norm.operands, norm.build),
    quantize.QuantizeRows: (quantize.operands, quantize.build),
    rope.Rope: (rope.rope_operands, rope.build_rope),
    rope.RopeTable: (rope.rope_table_operands, rope.build_rope_table),
    router.ExpertOrder: (router.expert_order_operands, router.build_expert_order),
    router.Router: (router.router_operands, router.build_router),
    router.RouterWeights: (router.router_weights_operands, router.build_router_weights),
}


def operands(spec: object) -> tuple[Operand, ...]:
    """Arguments of the kernel `spec` names, in call order."""
    return _KERNELS[type(spec)][0](spec)


def build(spec: object, level: IsaLevel) -> PrimFunc:
    """The kernel `spec` names, for `level`."""
    return _KERNELS[type(spec)][1](spec, level)
