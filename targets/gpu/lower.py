"""Which GPU kernels an operation becomes: the specs of the CPU kernels, one call for each of their stages."""

from __future__ import annotations

from collections.abc import Mapping

from dsv3c.compiler.ir import Value
from dsv3c.targets.cpu.lower import lower as lower_to_spec
from dsv3c.targets.gpu.kernels import stages
from dsv3c.targets.plan import KernelCall


def lower(value: Value, bounds: Mapping[str, int]) -> tuple[KernelCall, ...]:
    """The kernel calls for a value of phase "kernel", in order."""
    call = lower_to_spec(value, bounds)
    return tuple(KernelCall(stage, call.roles) for stage in stages(call.spec))
