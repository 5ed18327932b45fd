"""The Vulkan device: weights, arena and caches in its memory, one recorded command buffer a step.

Everything is made when the device opens; a choice of launches is recorded when it first occurs. A step writes its
inputs and grids to memory that the host sees, submits what was recorded, and waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.artifact.dispatches import AXES
from dsv3c.runtime.artifact.plan import NEVER, Output
from dsv3c.runtime.devices.dispatch import Key, Steps, table_of, usable
from dsv3c.runtime.devices.memory import typed
from dsv3c.runtime.devices.vulkan.binding import check
from dsv3c.runtime.devices.vulkan.dots import DOT
from dsv3c.runtime.devices.vulkan.gpu import DeviceBuffer, Gpu
from dsv3c.runtime.devices.vulkan.instance import Instance
from dsv3c.runtime.devices.vulkan.limits import require
from dsv3c.runtime.devices.vulkan.matrices import MATRIX, Matrices
from dsv3c.runtime.devices.vulkan.memory import Places
from dsv3c.runtime.devices.vulkan.pipelines import Pipelines
from dsv3c.runtime.devices.vulkan.recording import GRID_BYTES, CommandRecorder
from dsv3c.runtime.devices.vulkan.slots import Slots, read_back
from dsv3c.runtime.devices.vulkan.subgroups import SHUFFLE, WIDTH
from dsv3c.runtime.errors import DeviceLacks


class VulkanDevice:
    """Implements `Device`. wanted: which device, as `Instance.choose` takes it; direct: as for `Gpu`.

    Raises DeviceApiMissing, NoDeviceFound, UnknownDevice, DeviceLacks, DeviceMemoryShort, DeviceMemoryRefused,
    DeviceLost, and faults of the artifact.
    """

    forks = False  # the driver's context is the parent's

    prefill_min_tokens: int | None = None

    def __init__(self, artifact: Artifact, slots: int, wanted: str | None, direct: bool | None = None) -> None:
        self._plan, self.slots = artifact.plan, slots
        self._closers: list[Callable[[], None]] = []
        try:
            self._open(artifact, wanted, direct)
        except BaseException:
            self.close()
            raise

    def _open(self, artifact: Artifact, wanted: str | None, direct: bool | None) -> None:
        plan = self._plan
        asked = table_of(plan)
        instance = Instance()
        self._closers.append(instance.close)
        self._gpu = Gpu(instance, instance.choose(wanted), direct)
        self._closers.append(self._gpu.close)
        table = usable(asked, self._gpu.capabilities)
        if self._gpu.physical.type == "cpu":
            # On lavapipe (Mesa 22.3, 2 cores) materialised attention over 64 tokens took 30 times as long as absorbed,
            # over 256 six times: its threads keep much in registers, which there lie in memory.
            self.prefill_min_tokens = NEVER
        require(self._gpu, plan, table, self.slots)
        operands = {name: len(buffers) for entry in plan.entries.values() for name, buffers in entry.calls}
        forms = [(form, operands[name]) for name in operands for form in table.forms[name]]
        self._pipelines = Pipelines(self._gpu, artifact, forms)
        self._closers.append(self._pipelines.close)
        self._places = Places(self._gpu, artifact, self.slots)
        self._slots = Slots(self._gpu, plan, self._places)
        self.inputs: Mapping[str, NDArray[Any]] = self._places.inputs
        self._control = self.inputs["control"]
        self._steps = {name: Steps(plan, table, entry) for name, entry in plan.entries.items()}
        calls = max(steps.calls for steps in self._steps.values())
        grids = self._gpu.input_buffer(calls * GRID_BYTES, "the grids")
        assert grids.mapped is not None
        self._grids: NDArray[np.uint32] = grids.mapped.view(np.uint32).reshape(-1, AXES)
        self._recorder = CommandRecorder(self._gpu, plan, self._places, self._pipelines, grids)
        self._closers.append(self._recorder.close)
        self._recorded: dict[tuple[str, Key], Any] = {}
        self._outputs = None if self._gpu.direct else _Outputs(self._gpu, artifact, self._places.arena)

    def run(self, entry: str) -> None:
        tokens, rows = int(self._control[0]), int(self._control[1])
        steps = self._steps[entry]
        steps.grids(tokens, rows, self._grids)
        key = (entry, steps.key(tokens, rows))
        recorded = self._recorded.get(key)
        if recorded is None:
            commands = [self._recorder.record(steps.launches(tokens, rows))]
            if self._outputs is not None:
                commands.append(self._outputs.commands)
            recorded = self._recorded[key] = self._gpu.submission(*commands)
        if self._outputs is not None:
            self._outputs.record(entry, tokens, rows)
        self._gpu.submit(recorded, f"the entry {entry}")

    def run_timed(self, entry: str) -> NDArray[np.float64]:
        """As `run`; seconds that each call took, 0 for those that were not launched. Raises DeviceLacks."""
        vk, gpu = self._gpu.vk, self._gpu
        if not gpu.timestamp_bits:
            raise DeviceLacks(device=gpu.name, lacks="its queue has no timestamps", hint_text="leave out --per-op")
        tokens, rows = int(self._control[0]), int(self._control[1])
        steps = self._steps[entry]
        launches = steps.launches(tokens, rows)
        steps.grids(tokens, rows, self._grids)
        count = 2 * len(launches)
        wanted = vk.VkQueryPoolCreateInfo(queryType=vk.VK_QUERY_TYPE_TIMESTAMP, queryCount=count)
        queries = vk.vkCreateQueryPool(gpu.handle, wanted, None)
        commands = self._recorder.record_timed(launches, queries)
        both = [commands]
        if self._outputs is not None:
            self._outputs.record(entry, tokens, rows)
            both.append(self._outputs.commands)
        try:
            gpu.submit(gpu.submission(*both), f"the entry {entry}")
            marks = np.empty(count, np.uint64)
            target = vk.ffi.cast("void*", marks.ctypes.data)
            flags = vk.VK_QUERY_RESULT_64_BIT | vk.VK_QUERY_RESULT_WAIT_BIT
            check(vk, vk.lib.vkGetQueryPoolResults(gpu.handle, queries, 0, count, marks.nbytes, target, 8, flags))
        finally:
            gpu.discard(commands)
            vk.vkDestroyQueryPool(gpu.handle, queries, None)
        ticks = (marks[1::2] - marks[0::2]) & np.uint64(2**gpu.timestamp_bits - 1)
        seconds = np.zeros(steps.calls)
        seconds[[launch.call for launch in launches]] = ticks * (gpu.limits.timestampPeriod * 1e-9)
        return seconds

    def output(self, entry: str, name: str) -> NDArray[Any]:
        buffer = self._plan.buffers[self._plan.entries[entry].outputs[name].buffer]
        if self._outputs is not None:
            return self._outputs.array(entry, name)
        assert self._places.arena.mapped is not None
        return typed(self._places.arena.mapped, buffer.offset, buffer.dtype, buffer.size)

    def experts(self, entry: str) -> Mapping[int, NDArray[np.int32]]:
        sizes = self._plan.expert_ids(entry, int(self._control[0]))
        places = {layer: (self._places.arena, self._plan.buffers[index].offset) for layer, (index, _) in sizes.items()}
        found = {layer: np.empty(size, np.int32) for layer, (_, size) in sizes.items()}
        if found:
            targets = {layer: ids.view(np.uint8) for layer, ids in found.items()}
            read_back(self._gpu, places, targets, "the experts of a step")
        return found

    def copy_slots(self, source: int, target: int, count: int) -> None:
        self._slots.copy(source, target, count)

    def read_slots(self, start: int, count: int) -> Mapping[str, NDArray[Any]]:
        return self._slots.read(start, count)

    def write_slots(self, start: int, rows: Mapping[str, NDArray[Any]]) -> None:
        self._slots.write(start, rows)

    def report(self) -> dict[str, Any]:
        physical, has, needs = self._gpu.physical, self._gpu.capabilities, self._places.needs
        return {
            "device": "vulkan",
            "name": physical.name,
            "type": physical.type,
            "api": ".".join(map(str, physical.api)),
            "driver_version": physical.driver_version,
            "subgroup": has.get(SHUFFLE, {}).get(WIDTH, 0),
            "matrices": asdict(Matrices(*has[MATRIX].values())) if MATRIX in has else None,
            "integer_dots": DOT in has,
            "mapped": self._gpu.direct,
            **needs.report(),
            "cache_slots": self.slots,
            "memory_available": self._gpu.available(),
        }

    def close(self) -> None:
        self.inputs = {}
        self._recorded = {}
        for close in reversed(self._closers):
            close()
        self._closers = []


class _Outputs:
    """Where the host reads results of a device whose own memory it does not see: copied behind every step."""

    def __init__(self, gpu: Gpu, artifact: Artifact, arena: DeviceBuffer) -> None:
        self._gpu, self._arena = gpu, arena
        plan = artifact.plan
        self._results: dict[str, list[tuple[int, int, int, Output]]] = {}  # device and host offset, bytes a row
        self._arrays: dict[tuple[str, str], tuple[int, int, str]] = {}
        size = 0
        for entry in plan.entries.values():
            at, results = 0, []
            for name, output in entry.outputs.items():
                buffer = plan.buffers[output.buffer]
                results.append((buffer.offset, at, plan.row_bytes(output), output))
                self._arrays[entry.name, name] = at, buffer.size, buffer.dtype
                at += buffer.bytes
            self._results[entry.name] = results
            size = max(size, at)
        self._buffer = gpu.output_buffer(size, "what a step gives")
        self.commands = gpu.commands()

    def array(self, entry: str, name: str) -> NDArray[Any]:
        at, size, dtype = self._arrays[entry, name]
        assert self._buffer.mapped is not None
        return typed(self._buffer.mapped, at, dtype, size)

    def record(self, entry: str, tokens: int, rows: int) -> None:
        """The copies of this step's rows; recorded anew since their sizes are the host's to give."""
        vk, commands = self._gpu.vk, self.commands
        vk.vkBeginCommandBuffer(commands, vk.VkCommandBufferBeginInfo())
        for source, target, row, output in self._results[entry]:
            size = row * output.count(tokens, rows)
            if size:
                region = vk.VkBufferCopy(srcOffset=source, dstOffset=target, size=size)
                vk.vkCmdCopyBuffer(commands, self._arena.handle, self._buffer.handle, 1, [region])
        barrier = vk.VkMemoryBarrier(
            srcAccessMask=vk.VK_ACCESS_TRANSFER_WRITE_BIT, dstAccessMask=vk.VK_ACCESS_HOST_READ_BIT
        )
        stages = vk.VK_PIPELINE_STAGE_TRANSFER_BIT, vk.VK_PIPELINE_STAGE_HOST_BIT
        vk.vkCmdPipelineBarrier(commands, *stages, 0, 1, [barrier], 0, None, 0, None)
        vk.vkEndCommandBuffer(commands)
