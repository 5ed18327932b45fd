"""The devices of the Vulkan drivers of this machine, and the choice of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dsv3c.runtime.devices.vulkan.binding import load
from dsv3c.runtime.errors import NoDeviceFound, UnknownDevice

API = (1, 2, 0)
TYPES = ("other", "integrated", "discrete", "virtual", "cpu")  # VkPhysicalDeviceType
_PREFERENCE = ("discrete", "integrated", "virtual", "other", "cpu")
_GET_DRIVER = "install a Vulkan driver (Debian package mesa-vulkan-drivers), or the one of the GPU's vendor"


@dataclass(frozen=True)
class Physical:
    """One device: its place in the driver's list, name, type, driver version, and memory of its own in bytes."""

    number: int
    name: str
    type: str
    api: tuple[int, int, int]
    driver_version: int
    memory: int
    handle: Any
    properties: Any

    def described(self) -> str:
        return f"{self.number}: {self.name} ({self.type})"


class Instance:
    """A connection to the loader. Raises DeviceApiMissing, NoDeviceFound."""

    def __init__(self) -> None:
        self.vk = vk = load()
        application = vk.VkApplicationInfo(pApplicationName="dsv3c", apiVersion=vk.VK_MAKE_VERSION(*API))
        try:
            self.handle = vk.vkCreateInstance(vk.VkInstanceCreateInfo(pApplicationInfo=application), None)
        except (vk.VkError, vk.VkException) as error:
            raise NoDeviceFound(api="Vulkan", reason=f"no driver starts ({_name(error)})", get=_GET_DRIVER) from error
        try:
            handles = vk.vkEnumeratePhysicalDevices(self.handle)
        except (vk.VkError, vk.VkException) as error:
            self.close()
            raise NoDeviceFound(api="Vulkan", reason=f"the drivers fail ({_name(error)})", get=_GET_DRIVER) from error
        self.devices = tuple(_physical(vk, number, handle) for number, handle in enumerate(handles))
        if not self.devices:
            self.close()
            raise NoDeviceFound(api="Vulkan", reason="the drivers list none", get=_GET_DRIVER)

    def choose(self, wanted: str | None) -> Physical:
        """By number, by a part of the name or by type; without a wish a discrete GPU, then an integrated one, last a
        CPU. Raises UnknownDevice."""
        ranked = sorted(self.devices, key=lambda device: _PREFERENCE.index(device.type))
        if wanted is None:
            return ranked[0]
        text = wanted.strip().lower()
        for device in ranked:
            if text == str(device.number) or text == device.type:
                return device
        for device in ranked:
            if text and not text.isdigit() and text in device.name.lower():
                return device
        raise UnknownDevice(api="Vulkan", name=wanted, known=", ".join(item.described() for item in self.devices))

    def close(self) -> None:
        self.vk.vkDestroyInstance(self.handle, None)


def _physical(vk: Any, number: int, handle: Any) -> Physical:
    properties = vk.vkGetPhysicalDeviceProperties(handle)
    memory = vk.vkGetPhysicalDeviceMemoryProperties(handle)
    heaps = [memory.memoryHeaps[i] for i in range(memory.memoryHeapCount)]
    local = [heap.size for heap in heaps if heap.flags & vk.VK_MEMORY_HEAP_DEVICE_LOCAL_BIT]
    version = properties.apiVersion
    return Physical(
        number,
        properties.deviceName,
        TYPES[properties.deviceType] if properties.deviceType < len(TYPES) else "other",
        (version >> 22 & 0x7F, version >> 12 & 0x3FF, version & 0xFFF),
        properties.driverVersion,
        max(local, default=0),
        handle,
        properties,
    )


def _name(error: Exception) -> str:
    return type(error).__name__
