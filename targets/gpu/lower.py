"""Which GPU kernels an operation becomes: the specs of the CPU kernels, one call for each of their stages.

A weight with more bytes than a device binds at once is cut into runs of whole units (row blocks, table rows, experts),
and its kernel is called for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import gcd, lcm

from dsv3c.compiler.core.ir import Value, is_weight
from dsv3c.compiler.core.storage import ALIGNMENT
from dsv3c.compiler.errors import Dsv3cError
from dsv3c.targets.calls.lower import lower as lower_to_spec
from dsv3c.targets.calls.operands import operand_bytes
from dsv3c.targets.calls.plan import Bounds, KernelCall, WeightPart
from dsv3c.targets.gpu.kernels import operands, stages
from dsv3c.targets.gpu.kernels.parts import Part, can_be_cut, units, weight_role


class WeightTooLarge(Dsv3cError):
    message = "a weight of {op} has {nbytes} bytes in one piece, devices of this target bind {limit} at once"
    hint = "compile with fewer bits (--quant), or for another target"


def lower(value: Value, bounds: Bounds, max_binding: int) -> tuple[KernelCall, ...]:
    """The kernel calls for a value of phase "kernel", in order. Raises WeightTooLarge."""
    call = lower_to_spec(value, bounds)
    lowered = (KernelCall(stage, call.roles) for stage in stages(call.spec, max_binding))
    return tuple(part for stage in lowered for part in _parts(value, stage, max_binding))


def _parts(value: Value, call: KernelCall, limit: int) -> Iterator[KernelCall]:
    """The call itself if it binds its weight whole, else calls for as few parts as suffice."""
    whole = call.spec
    if all(operand_bytes(operand) <= limit for operand in operands(whole)):
        yield call  # not asking which are weights: each answer is a walk over the graph below
        return
    memo: dict[Value, bool] = {}
    weights = {role for role, source in call.roles.items() if is_weight(source, memo)}
    named = ((operand.role.partition(".")[0], operand) for operand in operands(whole))
    sizes = [operand_bytes(operand) for role, operand in named if role in weights]
    largest = max(sizes, default=0)
    if largest <= limit:
        yield call
        return
    step = _step(whole, sizes, limit)
    if not step:
        raise WeightTooLarge(op=value.op, nbytes=largest, limit=limit)
    role, total = weight_role(whole), units(whole)
    for first in range(0, total, step):
        part = Part(whole, first, min(step, total - first))
        yield KernelCall(part, call.roles, {role: WeightPart(first, total)})


def _step(whole: object, sizes: Sequence[int], limit: int) -> int:
    """Units of a part, so that every component fits and starts on a cache line; 0 where that cannot be.

    sizes: bytes of the components of the weight.
    """
    if not can_be_cut(whole):
        return 0
    each = [size // units(whole) for size in sizes]
    whole_lines = lcm(*(ALIGNMENT // gcd(ALIGNMENT, size) for size in each))
    return limit // max(each) // whole_lines * whole_lines
