"""A Vulkan device for single kernels: every operand in host-visible memory, one submission a call."""

import numpy as np
import pytest
import vulkan as vk

from dsv3c.runtime.devices.vulkan.dots import has_dots, with_dots
from dsv3c.runtime.devices.vulkan.matrices import matrices_of, with_matrices
from dsv3c.runtime.devices.vulkan.subgroups import WIDTH, Stage, device_wishes, subgroup_width
from dsv3c.targets.gpu.kernels.frame import THREADS
from tests.targets.vulkan.modules import MATRICES, SHUFFLE, capabilities

# After which a submission counts as hung. lavapipe compiles a kernel as it is launched: a minute on a busy machine.
SECONDS = 900


class Runner:
    """The first device of the driver that is found. Raises an error of the package vulkan where there is none."""

    def __init__(self):
        application = vk.VkApplicationInfo(pApplicationName="dsv3c", apiVersion=vk.VK_MAKE_VERSION(1, 2, 0))
        self.instance = vk.vkCreateInstance(vk.VkInstanceCreateInfo(pApplicationInfo=application), None)
        self.physical = vk.vkEnumeratePhysicalDevices(self.instance)[0]
        self.properties = vk.vkGetPhysicalDeviceProperties(self.physical)
        assert self.properties.limits.maxComputeWorkGroupInvocations >= THREADS
        families = vk.vkGetPhysicalDeviceQueueFamilyProperties(self.physical)
        family = next(i for i, item in enumerate(families) if item.queueFlags & vk.VK_QUEUE_COMPUTE_BIT)
        queues = [vk.VkDeviceQueueCreateInfo(queueFamilyIndex=family, pQueuePriorities=[1.0])]
        self.subgroup = subgroup_width(vk, self.physical)
        self.matrices = matrices_of(vk, self.instance, self.physical, self.subgroup)
        wishes = device_wishes(vk) if self.subgroup else {}
        wishes = wishes if self.matrices is None else with_matrices(vk, wishes)
        self.dots = has_dots(vk, self.physical)  # accelerated or not
        wishes = with_dots(vk, wishes) if self.dots else wishes
        wanted = vk.VkDeviceCreateInfo(pQueueCreateInfos=queues, **wishes)
        self.device = vk.vkCreateDevice(self.physical, wanted, None)
        self.queue = vk.vkGetDeviceQueue(self.device, family, 0)
        self.memory = vk.vkGetPhysicalDeviceMemoryProperties(self.physical)
        self.pool = vk.vkCreateCommandPool(self.device, vk.VkCommandPoolCreateInfo(queueFamilyIndex=family), None)
        self.fence = vk.vkCreateFence(self.device, vk.VkFenceCreateInfo(), None)

    def close(self):
        vk.vkDestroyFence(self.device, self.fence, None)
        vk.vkDestroyCommandPool(self.device, self.pool, None)
        vk.vkDestroyDevice(self.device, None)
        vk.vkDestroyInstance(self.instance, None)

    def run(self, spirv, arrays, grid):
        """Run one kernel: bytes of its module; operands, changed in place; workgroups (x, y, z)."""
        buffers = [self._buffer(-(-array.nbytes // 4) * 4) for array in arrays]
        for array, (_, _, mapped) in zip(arrays, buffers, strict=True):
            mapped[: array.nbytes] = array.view(np.uint8)
        layout, pipeline_layout, pipeline, module = self._pipeline(spirv, len(arrays))
        descriptors, chosen = self._descriptors(layout, buffers)
        self._submit(pipeline, pipeline_layout, chosen, grid)
        for array, (_, _, mapped) in zip(arrays, buffers, strict=True):
            array.view(np.uint8)[:] = mapped[: array.nbytes]
        vk.vkDestroyDescriptorPool(self.device, descriptors, None)
        vk.vkDestroyPipeline(self.device, pipeline, None)
        vk.vkDestroyPipelineLayout(self.device, pipeline_layout, None)
        vk.vkDestroyDescriptorSetLayout(self.device, layout, None)
        vk.vkDestroyShaderModule(self.device, module, None)
        for buffer, memory, _ in buffers:
            vk.vkDestroyBuffer(self.device, buffer, None)
            vk.vkFreeMemory(self.device, memory, None)

    def _buffer(self, size):
        usage = vk.VK_BUFFER_USAGE_STORAGE_BUFFER_BIT
        buffer = vk.vkCreateBuffer(self.device, vk.VkBufferCreateInfo(size=size, usage=usage), None)
        needs = vk.vkGetBufferMemoryRequirements(self.device, buffer)
        wanted = vk.VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | vk.VK_MEMORY_PROPERTY_HOST_COHERENT_BIT
        kind = next(
            i
            for i in range(self.memory.memoryTypeCount)
            if needs.memoryTypeBits >> i & 1 and self.memory.memoryTypes[i].propertyFlags & wanted == wanted
        )
        allocation = vk.VkMemoryAllocateInfo(allocationSize=needs.size, memoryTypeIndex=kind)
        memory = vk.vkAllocateMemory(self.device, allocation, None)
        vk.vkBindBufferMemory(self.device, buffer, memory, 0)
        return buffer, memory, np.frombuffer(vk.vkMapMemory(self.device, memory, 0, size, 0), np.uint8)

    def _pipeline(self, spirv, operands):
        info = vk.VkShaderModuleCreateInfo(codeSize=len(spirv), pCode=spirv)
        module = vk.vkCreateShaderModule(self.device, info, None)
        kind, stages = vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, vk.VK_SHADER_STAGE_COMPUTE_BIT
        bindings = [
            vk.VkDescriptorSetLayoutBinding(binding=i, descriptorType=kind, descriptorCount=1, stageFlags=stages)
            for i in range(operands)
        ]
        layout_info = vk.VkDescriptorSetLayoutCreateInfo(pBindings=bindings)
        layout = vk.vkCreateDescriptorSetLayout(self.device, layout_info, None)
        pipeline_layout_info = vk.VkPipelineLayoutCreateInfo(pSetLayouts=[layout])
        pipeline_layout = vk.vkCreatePipelineLayout(self.device, pipeline_layout_info, None)
        asked = capabilities(spirv)
        constants = {WIDTH: self.subgroup} if SHUFFLE in asked else {}
        constants |= self.matrices.constants if MATRICES in asked else {}
        stage = Stage(vk, module, constants)
        create = vk.VkComputePipelineCreateInfo(stage=stage.info, layout=pipeline_layout)
        (pipeline,) = vk.vkCreateComputePipelines(self.device, None, 1, [create], None)
        return layout, pipeline_layout, pipeline, module

    def _descriptors(self, layout, buffers):
        kind = vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER
        sizes = [vk.VkDescriptorPoolSize(kind, len(buffers))]
        pool = vk.vkCreateDescriptorPool(self.device, vk.VkDescriptorPoolCreateInfo(maxSets=1, pPoolSizes=sizes), None)
        wanted = vk.VkDescriptorSetAllocateInfo(descriptorPool=pool, pSetLayouts=[layout])
        chosen = vk.vkAllocateDescriptorSets(self.device, wanted)[0]
        writes = [
            vk.VkWriteDescriptorSet(
                dstSet=chosen,
                dstBinding=i,
                descriptorCount=1,
                descriptorType=kind,
                pBufferInfo=[vk.VkDescriptorBufferInfo(buffer, 0, len(mapped))],
            )
            for i, (buffer, _, mapped) in enumerate(buffers)
        ]
        vk.vkUpdateDescriptorSets(self.device, len(writes), writes, 0, None)
        return pool, chosen

    def _submit(self, pipeline, layout, chosen, grid):
        point = vk.VK_PIPELINE_BIND_POINT_COMPUTE
        wanted = vk.VkCommandBufferAllocateInfo(commandPool=self.pool, level=0, commandBufferCount=1)
        (commands,) = vk.vkAllocateCommandBuffers(self.device, wanted)
        vk.vkBeginCommandBuffer(commands, vk.VkCommandBufferBeginInfo())
        vk.vkCmdBindPipeline(commands, point, pipeline)
        vk.vkCmdBindDescriptorSets(commands, point, layout, 0, 1, [chosen], 0, None)
        vk.vkCmdDispatch(commands, *grid)
        vk.vkEndCommandBuffer(commands)
        vk.vkQueueSubmit(self.queue, 1, [vk.VkSubmitInfo(pCommandBuffers=[commands])], self.fence)
        try:
            vk.vkWaitForFences(self.device, 1, [self.fence], 1, SECONDS * 10**9)
        except vk.VkTimeout:
            # What it uses must not be freed, so no further test can run in this process.
            pytest.exit(f"a Vulkan kernel has not ended within {SECONDS} s", returncode=3)
        vk.vkResetFences(self.device, 1, [self.fence])
        vk.vkFreeCommandBuffers(self.device, self.pool, 1, [commands])
