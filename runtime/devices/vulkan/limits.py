"""What a plan asks of a device, by the names that Vulkan has for its limits."""

from __future__ import annotations

from collections.abc import Iterator

from dsv3c.runtime.artifact.dispatches import Table
from dsv3c.runtime.artifact.plan import Plan
from dsv3c.runtime.artifact.weights import ALIGNMENT
from dsv3c.runtime.devices.dispatch import Steps
from dsv3c.runtime.devices.vulkan.gpu import Gpu
from dsv3c.runtime.errors import DeviceLacks

_LESS = "lower context or max_batch when loading, compile with a lower --max-tokens, or take another --device"


def require(gpu: Gpu, plan: Plan, table: Table, slots: int) -> None:
    """Raises DeviceLacks that names every limit that is too low, what was found and what is needed."""
    lacks = [f"{name} is {found}, {needed} is needed" for name, found, needed in _demands(gpu, plan, table, slots)]
    if gpu.limits.minStorageBufferOffsetAlignment > ALIGNMENT:
        found = gpu.limits.minStorageBufferOffsetAlignment
        lacks.append(f"minStorageBufferOffsetAlignment is {found}, at most {ALIGNMENT} is needed")
    if lacks:
        raise DeviceLacks(device=gpu.name, lacks="; ".join(lacks), hint_text=_LESS)


def _demands(gpu: Gpu, plan: Plan, table: Table, slots: int) -> Iterator[tuple[str, int, int]]:
    """(limit, found, needed) of those that are too low."""
    limits = gpu.limits
    operands = max((len(buffers) for entry in plan.entries.values() for _, buffers in entry.calls), default=0)
    largest = max(buffer.bytes + slots * buffer.slot_bytes for buffer in plan.buffers)
    needed = {
        "maxComputeWorkGroupInvocations": (limits.maxComputeWorkGroupInvocations, table.threads),
        "maxComputeWorkGroupSize[0]": (limits.maxComputeWorkGroupSize[0], table.threads),
        "maxPerStageDescriptorStorageBuffers": (limits.maxPerStageDescriptorStorageBuffers, operands),
        "maxStorageBufferRange": (limits.maxStorageBufferRange, largest),
    }
    grids = [Steps(plan, table, entry).largest() for entry in plan.entries.values()]
    for axis, groups in enumerate(map(max, zip(*grids, strict=True))):
        needed[f"maxComputeWorkGroupCount[{axis}]"] = (limits.maxComputeWorkGroupCount[axis], groups)
    yield from ((name, found, wanted) for name, (found, wanted) in needed.items() if found < wanted)
