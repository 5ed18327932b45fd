"""GPU kernels in TIR, written once for all GPU targets.

A kernel is named by the frozen spec that the CPU kernels have. `operands(spec)` lists its arguments in order;
`variants(spec)` gives its forms, the first whose `most_rows` suffices is launched. Activations are float32; weights
are decoded in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dsv3c.targets.cpu.kernels import elementwise, embedding, linear, norm, rope
from dsv3c.targets.cpu.kernels import router as routers
from dsv3c.targets.gpu.kernels import products, routing, rows
from dsv3c.targets.gpu.kernels.frame import Variant
from dsv3c.targets.plan import Operand

_Operands = Callable[[Any], tuple[Operand, ...]]
_Variants = Callable[[Any, Sequence[Operand]], tuple[Variant, ...]]

_KERNELS: dict[type, tuple[_Operands, _Variants]] = {
    elementwise.Add: (elementwise.add_operands, rows.add_rows),
    elementwise.Concat: (elementwise.concat_operands, rows.concat),
    elementwise.Swiglu: (elementwise.swiglu_operands, rows.swiglu),
    embedding.Take: (embedding.operands, rows.take),
    linear.Linear: (products.linear_operands, products.linear),
    norm.RmsNorm: (norm.operands, rows.rms_norm),
    rope.Rope: (rope.rope_operands, rows.rope),
    rope.RopeTable: (rope.rope_table_operands, rows.rope_table),
    routers.ExpertOrder: (routing.order_operands, routing.expert_order),
    routers.Router: (routing.router_operands, routing.router),
    routers.RouterWeights: (routers.router_weights_operands, routing.router_weights),
}


def supports(spec: object) -> bool:
    """Whether there is a kernel for `spec`."""
    return type(spec) in _KERNELS


def operands(spec: object) -> tuple[Operand, ...]:
    """Arguments of the kernel `spec` names, in call order."""
    return _KERNELS[type(spec)][0](spec)


def variants(spec: object) -> tuple[Variant, ...]:
    """Forms of the kernel `spec` names, those for the fewest rows first; the last takes any number."""
    return _KERNELS[type(spec)][1](spec, operands(spec))
