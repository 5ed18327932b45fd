"""The logical device: its queue, its buffers, and submissions that are waited for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.devices.vulkan.binding import check, guarded
from dsv3c.runtime.devices.vulkan.dots import DOT, has_fast_dots, with_dots
from dsv3c.runtime.devices.vulkan.instance import API, Instance, Physical
from dsv3c.runtime.devices.vulkan.matrices import MATRIX, matrices_of, with_matrices
from dsv3c.runtime.devices.vulkan.subgroups import SHUFFLE, WIDTH, device_wishes, subgroup_width
from dsv3c.runtime.errors import DeviceLacks

WAIT_NS = 10**9  # between two looks at the keyboard
DEFAULT_ALLOCATION = 1 << 30  # every Vulkan 1.1 device allows as much
_UPDATE = "update the driver, or take another --device"


@dataclass(frozen=True)
class DeviceBuffer:
    """A buffer with memory of its own. mapped: u8[size] where the host sees it, else None."""

    handle: Any
    memory: Any
    size: int
    mapped: NDArray[np.uint8] | None


class Gpu:
    """One device with one queue for compute. Raises DeviceLacks, DeviceMemoryRefused, DeviceLost.

    direct: whether the host sees the device's own memory, cached, so that nothing need be copied. None asks the device.
    capabilities: as the function finds them.
    """

    def __init__(self, instance: Instance, physical: Physical, direct: bool | None = None) -> None:
        self.vk = vk = instance.vk
        self.physical, self.name = physical, physical.name
        self.limits = physical.properties.limits
        if physical.api < API:
            lacks = f"it has Vulkan {physical.api[0]}.{physical.api[1]}, {API[0]}.{API[1]} is needed"
            raise DeviceLacks(device=self.name, lacks=lacks, hint_text=_UPDATE)
        family, self.timestamp_bits = _compute_family(vk, physical)
        self._properties = vk.vkGetPhysicalDeviceMemoryProperties(physical.handle)
        self.largest_allocation = _largest_allocation(vk, physical)
        queues = [vk.VkDeviceQueueCreateInfo(queueFamilyIndex=family, pQueuePriorities=[1.0])]
        self.capabilities = capabilities(instance, physical)
        wishes = device_wishes(vk) if SHUFFLE in self.capabilities else {}
        wishes = with_matrices(vk, wishes) if MATRIX in self.capabilities else wishes
        wishes = with_dots(vk, wishes) if DOT in self.capabilities else wishes
        wanted = vk.VkDeviceCreateInfo(pQueueCreateInfos=queues, **wishes)
        with guarded(vk, self.name, "a device"):
            self.handle = vk.vkCreateDevice(physical.handle, wanted, None)
        self.queue = vk.vkGetDeviceQueue(self.handle, family, 0)
        flags = vk.VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT
        pool = vk.VkCommandPoolCreateInfo(queueFamilyIndex=family, flags=flags)
        self._pool = vk.vkCreateCommandPool(self.handle, pool, None)
        self._fence = vk.ffi.new("VkFence*", vk.vkCreateFence(self.handle, vk.VkFenceCreateInfo(), None))
        self._buffers: list[DeviceBuffer] = []
        local, visible = vk.VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, vk.VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT
        coherent, cached = vk.VK_MEMORY_PROPERTY_HOST_COHERENT_BIT, vk.VK_MEMORY_PROPERTY_HOST_CACHED_BIT
        shared = self._memory_type(local | visible | coherent | cached) is not None
        self.direct = shared and physical.type in ("integrated", "cpu") if direct is None else direct
        host = visible | coherent
        self._device_memory = [local | host | cached] if self.direct else [local]
        self._input_memory = [local | host, host]
        self._output_memory = [host | cached, host]

    # --- memory

    def device_buffer(self, size: int, what: str) -> DeviceBuffer:
        """In the device's own memory; mapped when `direct`."""
        return self._buffer(size, self._device_memory, what, self.direct)

    def input_buffer(self, size: int, what: str) -> DeviceBuffer:
        """Written by the host, read by the device."""
        return self._buffer(size, self._input_memory, what, True)

    def output_buffer(self, size: int, what: str) -> DeviceBuffer:
        """Written by the device, read by the host."""
        return self._buffer(size, self._output_memory, what, True)

    def free(self, buffer: DeviceBuffer) -> None:
        self._buffers.remove(buffer)
        self.vk.vkDestroyBuffer(self.handle, buffer.handle, None)
        self.vk.vkFreeMemory(self.handle, buffer.memory, None)

    def available(self) -> int:
        """Bytes of the heap that device buffers come from, less what other programs use where the driver tells."""
        vk = self.vk
        index = self._memory_type(self._device_memory[0])
        heap = self._properties.memoryTypes[0 if index is None else index].heapIndex
        size = int(self._properties.memoryHeaps[heap].size)
        extensions = vk.vkEnumerateDeviceExtensionProperties(self.physical.handle, None)
        if "VK_EXT_memory_budget" not in {extension.extensionName for extension in extensions}:
            return size
        budget = vk.VkPhysicalDeviceMemoryBudgetPropertiesEXT()
        vk.vkGetPhysicalDeviceMemoryProperties2(
            self.physical.handle, vk.VkPhysicalDeviceMemoryProperties2(pNext=budget)
        )
        return min(size, int(budget.heapBudget[heap])) if budget.heapBudget[heap] else size

    def _buffer(self, size: int, wishes: Sequence[int], what: str, mapped: bool) -> DeviceBuffer:
        vk, size = self.vk, -(-max(size, 4) // 4) * 4
        usage = (
            vk.VK_BUFFER_USAGE_STORAGE_BUFFER_BIT
            | vk.VK_BUFFER_USAGE_TRANSFER_SRC_BIT
            | vk.VK_BUFFER_USAGE_TRANSFER_DST_BIT
            | vk.VK_BUFFER_USAGE_INDIRECT_BUFFER_BIT
        )
        with guarded(vk, self.name, what, size):
            handle = vk.vkCreateBuffer(self.handle, vk.VkBufferCreateInfo(size=size, usage=usage), None)
            needs = vk.vkGetBufferMemoryRequirements(self.handle, handle)
            found = (self._memory_type(flags, needs.memoryTypeBits) for flags in wishes)
            kind = next((index for index in found if index is not None), None)
            if kind is None:
                raise DeviceLacks(device=self.name, lacks=f"it has no memory for {what}", hint_text=_UPDATE)
            allocation = vk.VkMemoryAllocateInfo(allocationSize=needs.size, memoryTypeIndex=kind)
            try:
                memory = vk.vkAllocateMemory(self.handle, allocation, None)
            except BaseException:
                vk.vkDestroyBuffer(self.handle, handle, None)
                raise
            vk.vkBindBufferMemory(self.handle, handle, memory, 0)
            seen = np.frombuffer(vk.vkMapMemory(self.handle, memory, 0, size, 0), np.uint8) if mapped else None
        buffer = DeviceBuffer(handle, memory, size, seen)
        self._buffers.append(buffer)
        return buffer

    def _memory_type(self, flags: int, allowed: int = 0xFFFFFFFF) -> int | None:
        kinds = self._properties.memoryTypes
        for index in range(self._properties.memoryTypeCount):
            if allowed >> index & 1 and kinds[index].propertyFlags & flags == flags:
                return index
        return None

    # --- work

    def commands(self) -> Any:
        """A new command buffer, not begun."""
        wanted = self.vk.VkCommandBufferAllocateInfo(commandPool=self._pool, level=0, commandBufferCount=1)
        return self.vk.vkAllocateCommandBuffers(self.handle, wanted)[0]

    def discard(self, commands: Any) -> None:
        """Give a command buffer back that no submission runs."""
        self.vk.vkFreeCommandBuffers(self.handle, self._pool, 1, [commands])

    def submission(self, *commands: Any) -> Any:
        """What `submit` takes; may be submitted any number of times."""
        vk = self.vk
        handles = vk.ffi.new("VkCommandBuffer[]", list(commands))
        kind = vk.VK_STRUCTURE_TYPE_SUBMIT_INFO
        info = vk.ffi.new(
            "VkSubmitInfo*", {"sType": kind, "commandBufferCount": len(commands), "pCommandBuffers": handles}
        )
        return info, handles  # the struct does not keep the array it points to

    def submit(self, submission: Any, what: str) -> None:
        """Run and wait. The library is called without the package's wrappers, which cost more than the driver."""
        lib, vk = self.vk.lib, self.vk
        with guarded(vk, self.name, what):
            check(vk, lib.vkQueueSubmit(self.queue, 1, submission[0], self._fence[0]))
            result = vk.VK_TIMEOUT
            try:
                while result == vk.VK_TIMEOUT:
                    result = lib.vkWaitForFences(self.handle, 1, self._fence, 1, WAIT_NS)
            except KeyboardInterrupt:
                lib.vkDeviceWaitIdle(self.handle)  # what runs cannot be called back, and the fence is needed again
                lib.vkResetFences(self.handle, 1, self._fence)
                raise
            check(vk, result)
            check(vk, lib.vkResetFences(self.handle, 1, self._fence))

    def close(self) -> None:
        vk = self.vk
        vk.lib.vkDeviceWaitIdle(self.handle)  # its result is of no use: a lost device is torn down as any other
        for buffer in list(self._buffers):
            self.free(buffer)
        vk.vkDestroyFence(self.handle, self._fence[0], None)
        vk.vkDestroyCommandPool(self.handle, self._pool, None)
        vk.vkDestroyDevice(self.handle, None)


def capabilities(instance: Instance, physical: Physical) -> dict[str, dict[int, int]]:
    """By capability of a device that forms of kernels may require, the specialisation constants of these forms."""
    vk, handle = instance.vk, physical.handle
    width = subgroup_width(vk, handle)
    matrices = matrices_of(vk, instance.handle, handle, width)
    found: dict[str, dict[int, int]] = {SHUFFLE: {WIDTH: width}} if width else {}
    found |= {MATRIX: matrices.constants} if matrices is not None else {}
    return found | ({DOT: {}} if has_fast_dots(vk, handle) else {})


def _compute_family(vk: Any, physical: Physical) -> tuple[int, int]:
    """Index and timestamp bits of a queue family for compute."""
    families = vk.vkGetPhysicalDeviceQueueFamilyProperties(physical.handle)
    for index, family in enumerate(families):
        if family.queueFlags & vk.VK_QUEUE_COMPUTE_BIT:
            return index, family.timestampValidBits
    raise DeviceLacks(device=physical.name, lacks="it has no queue for compute", hint_text=_UPDATE)


def _largest_allocation(vk: Any, physical: Physical) -> int:
    """maxMemoryAllocationSize: also the most that one buffer is given here."""
    limits = vk.VkPhysicalDeviceMaintenance3Properties()
    vk.vkGetPhysicalDeviceProperties2(physical.handle, vk.VkPhysicalDeviceProperties2(pNext=limits))
    return int(limits.maxMemoryAllocationSize) or DEFAULT_ALLOCATION
