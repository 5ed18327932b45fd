"""From graphs to a plan of GPU kernel calls; no kernel is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dsv3c.compiler.core.ir import Value
from dsv3c.compiler.core.target import EntryGraph, Planned
from dsv3c.runtime.artifact.costs import FLOAT32, Cost
from dsv3c.targets.calls.costs import cost
from dsv3c.targets.calls.plan import Calls, PlanBuilder
from dsv3c.targets.gpu.kernels import operands, stages
from dsv3c.targets.gpu.kernels.parts import Part, units
from dsv3c.targets.gpu.lower import lower
from dsv3c.targets.gpu.sampling import add_sampling


def plan(entries: Mapping[str, EntryGraph], bounds: Mapping[str, int], max_binding: int) -> Planned:
    """The plan of all entries over one arena, those that end with tokens included.

    max_binding: bytes of a weight, or of scratch, that a kernel can be given as one operand.
    """
    builder = PlanBuilder(bounds, _calls(max_binding))
    builder.add(entries)
    add_sampling(builder)
    return builder.planned(_cost)


def scratch_bytes(value: Value, bounds: Mapping[str, int], max_binding: int) -> int:
    """Bytes of the scratch operand that the kernels of a value share, 0 without one."""
    return _calls(max_binding).scratch_bytes(value, bounds)


def _calls(max_binding: int) -> Calls:
    return Calls(lambda value, bounds: lower(value, bounds, max_binding), operands)


def _cost(spec: Any) -> Cost | None:
    """What a kernel costs; the first of the stages of an operation bears all of it, since it does the products.

    The parts of a weight share the operations of a row and the rows of a table.
    """
    if isinstance(spec, Part):
        stated, total = _cost(spec.whole), units(spec.whole)
        shared = ("row_flops", "table_rows")
        return stated and replace(stated, **{key: getattr(stated, key) * spec.count // total for key in shared})
    operation = getattr(spec, "spec", spec)
    stated = cost(operation) if _is_first(spec, stages(operation)[0]) else None
    return stated and replace(stated, factors=FLOAT32)  # activations stay floats


def _is_first(spec: Any, stage: Any) -> bool:
    """Whether it is that stage, or as much of it as a device binds at once."""
    return type(spec) is type(stage) and getattr(spec, "first", 0) == 0
