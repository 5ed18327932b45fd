"""Command buffers of an entry: recorded once for each choice of launches, with grids that the device reads.

A grid is three words of a buffer that the host writes before a step, so a recording serves all steps of its choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dsv3c.runtime.artifact.plan import Plan
from dsv3c.runtime.devices.dispatch import Launch
from dsv3c.runtime.devices.vulkan.gpu import DeviceBuffer, Gpu
from dsv3c.runtime.devices.vulkan.memory import Place, Places
from dsv3c.runtime.devices.vulkan.pipelines import Pipelines

GRID_BYTES = 12


class CommandRecorder:
    """Records launches of the entries of one plan, and owns their descriptor sets: one for each call."""

    def __init__(self, gpu: Gpu, plan: Plan, places: Places, pipelines: Pipelines, grids: DeviceBuffer) -> None:
        self._gpu, self._pipelines, self._grids = gpu, pipelines, grids
        calls = [buffers for entry in plan.entries.values() for _, buffers in entry.calls]
        vk = gpu.vk
        sizes = [vk.VkDescriptorPoolSize(vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, sum(map(len, calls)))]
        wanted = vk.VkDescriptorPoolCreateInfo(maxSets=len(calls), pPoolSizes=sizes)
        self._pool = vk.vkCreateDescriptorPool(gpu.handle, wanted, None)
        self._sets: dict[tuple[int, ...], Any] = {}
        for buffers in calls:
            if buffers not in self._sets:
                self._sets[buffers] = self._described([places.of[index] for index in buffers])

    def record(self, launches: Sequence[Launch]) -> Any:
        """A command buffer of all launches, with barriers where they are needed; the host may read what they wrote."""
        vk, commands = self._gpu.vk, self._gpu.commands()
        vk.vkBeginCommandBuffer(commands, vk.VkCommandBufferBeginInfo())
        for number, launch in enumerate(launches):
            if launch.barrier:
                self._barrier(commands, vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT)
            self._launch(commands, launch, number)
        self._barrier(commands, vk.VK_PIPELINE_STAGE_HOST_BIT | vk.VK_PIPELINE_STAGE_TRANSFER_BIT)
        vk.vkEndCommandBuffer(commands)
        return commands

    def record_timed(self, launches: Sequence[Launch], queries: Any) -> Any:
        """As `record`, each launch alone between two timestamps: queries 2i and 2i + 1."""
        vk, commands = self._gpu.vk, self._gpu.commands()
        vk.vkBeginCommandBuffer(commands, vk.VkCommandBufferBeginInfo())
        vk.vkCmdResetQueryPool(commands, queries, 0, 2 * len(launches))
        for number, launch in enumerate(launches):
            self._barrier(commands, vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT)
            vk.vkCmdWriteTimestamp(commands, vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, queries, 2 * number)
            self._launch(commands, launch, number)
            vk.vkCmdWriteTimestamp(commands, vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, queries, 2 * number + 1)
        self._barrier(commands, vk.VK_PIPELINE_STAGE_HOST_BIT | vk.VK_PIPELINE_STAGE_TRANSFER_BIT)
        vk.vkEndCommandBuffer(commands)
        return commands

    def close(self) -> None:
        self._gpu.vk.vkDestroyDescriptorPool(self._gpu.handle, self._pool, None)

    def _launch(self, commands: Any, launch: Launch, number: int) -> None:
        vk, point = self._gpu.vk, self._gpu.vk.VK_PIPELINE_BIND_POINT_COMPUTE
        layout = self._pipelines.layouts[len(launch.buffers)]
        vk.vkCmdBindPipeline(commands, point, self._pipelines.of[launch.form.function])
        vk.vkCmdBindDescriptorSets(commands, point, layout, 0, 1, [self._sets[launch.buffers]], 0, None)
        vk.vkCmdDispatchIndirect(commands, self._grids.handle, number * GRID_BYTES)

    def _barrier(self, commands: Any, reader: int) -> None:
        vk = self._gpu.vk
        seen = vk.VK_ACCESS_SHADER_READ_BIT | vk.VK_ACCESS_SHADER_WRITE_BIT
        if reader != vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT:
            seen = vk.VK_ACCESS_HOST_READ_BIT | vk.VK_ACCESS_TRANSFER_READ_BIT
        barrier = vk.VkMemoryBarrier(srcAccessMask=vk.VK_ACCESS_SHADER_WRITE_BIT, dstAccessMask=seen)
        compute = vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT
        vk.vkCmdPipelineBarrier(commands, compute, reader, 0, 1, [barrier], 0, None, 0, None)

    def _described(self, places: Sequence[Place]) -> Any:
        """A descriptor set whose binding i is the i-th place, in whole words."""
        vk, device = self._gpu.vk, self._gpu.handle
        layout = self._pipelines.set_layouts[len(places)]
        wanted = vk.VkDescriptorSetAllocateInfo(descriptorPool=self._pool, pSetLayouts=[layout])
        chosen = vk.vkAllocateDescriptorSets(device, wanted)[0]
        writes = [
            vk.VkWriteDescriptorSet(
                dstSet=chosen,
                dstBinding=binding,
                descriptorCount=1,
                descriptorType=vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                pBufferInfo=[vk.VkDescriptorBufferInfo(place.buffer.handle, place.offset, -(-place.size // 4) * 4)],
            )
            for binding, place in enumerate(places)
        ]
        vk.vkUpdateDescriptorSets(device, len(writes), writes, 0, None)
        return chosen
