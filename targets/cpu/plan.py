"""From graphs to a plan of kernel calls over flat buffers; no kernel is built."""

from __future__ import annotations

from collections.abc import Mapping

from dsv3c.compiler.core.ir import Value
from dsv3c.compiler.core.target import EntryGraph, Planned
from dsv3c.targets.calls.costs import cost
from dsv3c.targets.calls.lower import lower
from dsv3c.targets.calls.plan import Calls, PlanBuilder
from dsv3c.targets.cpu.kernels import operands

CALLS = Calls(lambda value, bounds: (lower(value, bounds),), operands)


def plan(entries: Mapping[str, EntryGraph], bounds: Mapping[str, int]) -> Planned:
    """The plan of all entries over one arena, and the kernels they share."""
    builder = PlanBuilder(bounds, CALLS)
    builder.add(entries)
    return builder.planned(cost)


def scratch_bytes(value: Value, bounds: Mapping[str, int]) -> int:
    """Bytes of the kernel's scratch operand, 0 for a kernel without one."""
    return CALLS.scratch_bytes(value, bounds)
