"""GPU kernels in TIR, written once for all GPU targets.

Operations are named by the frozen specs that the CPU kernels have. `stages(spec)` says which kernels one takes,
`operands(stage)` lists a kernel's arguments in order, `variants(stage)` gives its forms, of which the first whose
`most_rows` suffices is launched. Activations are float32; weights are decoded in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
from dsv3c.targets.calls.operands import Operand
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
from dsv3c.targets.gpu.capabilities import MOST_BINDING, NOTHING, Capabilities
from dsv3c.targets.gpu.kernels import experts, parts, products, routing, rows
from dsv3c.targets.gpu.kernels.attention import absorbed as attention
from dsv3c.targets.gpu.kernels.attention import choice, indexer, materialized, paged
from dsv3c.targets.gpu.kernels.frame import Variant
from dsv3c.targets.gpu.kernels.sampling import steps as sampling

_Operands = Callable[[Any], tuple[Operand, ...]]
_Variants = Callable[[Any, Sequence[Operand]], tuple[Variant, ...]]

_KERNELS: dict[type, tuple[_Operands, _Variants]] = {
    attention.Merge: (attention.merge_operands, attention.merge),
    attention.Partial: (attention.partial_operands, attention.partial),
    choice.Choice: (choice.choice_operands, choice.choice),
    indexer.Scores: (indexer.scores_operands, indexer.scores),
    IndexWrite: (index_write_operands, indexer.write),
    MlaWrite: (mla_write_operands, paged.write),
    Add: (add_operands, rows.add_rows),
    Concat: (concat_operands, rows.concat),
    ScaleRows: (scale_rows_operands, rows.scale_rows),
    Swiglu: (swiglu_operands, rows.swiglu),
    Take: (take_operands, rows.take),
    experts.PairDown: (experts.pair_down_operands, experts.pair_down),
    experts.PairSum: (experts.pair_sum_operands, experts.pair_sum),
    Linear: (products.linear_operands, products.linear),
    materialized.MergeBlocks: (materialized.merge_operands, materialized.merge),
    materialized.SeeBlocks: (materialized.see_operands, materialized.see),
    MoeGateUp: (experts.gate_up_operands, experts.gate_up),
    RmsNorm: (rms_norm_operands, rows.rms_norm),
    parts.Part: (parts.part_operands, parts.part),
    Rope: (rope_operands, rows.rope),
    RopeTable: (rope_table_operands, rows.rope_table),
    ExpertOrder: (routing.order_operands, routing.expert_order),
    ExpertWeights: (expert_weights_operands, routing.expert_weights),
    IdentityExperts: (identity_experts_operands, routing.identity_experts),
    Router: (routing.router_operands, routing.router),
    RouterWeights: (router_weights_operands, routing.router_weights),
    sampling.Best: (sampling.sampling_operands, sampling.best),
    sampling.Finish: (sampling.sampling_operands, sampling.finish),
    sampling.Start: (sampling.sampling_operands, sampling.start),
    sampling.SearchStep: (sampling.sampling_operands, sampling.step),
}

# What takes several kernels.
_STAGES: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    MlaAbsorbed: lambda spec: (attention.Partial(spec), attention.Merge(spec)),
    MlaSparse: lambda spec: (attention.Partial(spec), attention.Merge(spec)),
    MlaMaterialized: lambda spec: (materialized.SeeBlocks(spec), materialized.MergeBlocks(spec)),
    MoeDown: lambda spec: (experts.PairDown(spec), experts.PairSum(spec)),
    sampling.Greedy: sampling.sampling_stages,
    sampling.Sample: sampling.sampling_stages,
}
# And more of them the less a device binds at once.
_PARTED: dict[type, Callable[[Any, int], tuple[Any, ...]]] = {IndexTopk: choice.stages}
SPECS = (*_KERNELS, *_STAGES, *_PARTED)


def stages(spec: Any, binding: int = MOST_BINDING) -> tuple[Any, ...]:
    """The kernels that `spec` takes, one after the other; they share its scratch, of at most `binding` bytes."""
    if parted := _PARTED.get(type(spec)):
        return parted(spec, binding)
    several = _STAGES.get(type(spec))
    return several(spec) if several else (spec,)


def operands(spec: object) -> tuple[Operand, ...]:
    """Arguments of the kernel `spec` names, in call order."""
    return _KERNELS[type(spec)][0](spec)


def variants(spec: object, capabilities: Capabilities = NOTHING) -> tuple[Variant, ...]:
    """Forms of the kernel `spec` names, those for the fewest rows first; the last takes any number on any device.

    capabilities: what the target's compiler can express and its devices have, see targets/gpu/capabilities.py.
    """
    return capabilities.usable(_KERNELS[type(spec)][1](spec, operands(spec)))
