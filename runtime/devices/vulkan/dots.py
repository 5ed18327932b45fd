"""Integer dot products of a device (VK_KHR_shader_integer_dot_product): of two words with four int8 each.

A driver may have them without an instruction for it. Kernels that require them round activations to int8, which is of
use only where that saves time: where the device says that they are accelerated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DOT = "integer-dot-product"  # what forms of kernels require
EXTENSION = "VK_KHR_shader_integer_dot_product"  # part of Vulkan only from 1.3 on


def has_dots(vk: Any, handle: Any) -> bool:
    """Whether the physical device runs kernels with them."""
    if EXTENSION not in {item.extensionName for item in vk.vkEnumerateDeviceExtensionProperties(handle, None)}:
        return False
    has = vk.VkPhysicalDeviceShaderIntegerDotProductFeatures()
    vk.vkGetPhysicalDeviceFeatures2(handle, vk.VkPhysicalDeviceFeatures2(pNext=has))
    return bool(has.shaderIntegerDotProduct)


def has_fast_dots(vk: Any, handle: Any) -> bool:
    """Whether it does so by an instruction."""
    if not has_dots(vk, handle):
        return False
    fast = vk.VkPhysicalDeviceShaderIntegerDotProductProperties()
    vk.vkGetPhysicalDeviceProperties2(handle, vk.VkPhysicalDeviceProperties2(pNext=fast))
    return bool(fast.integerDotProduct4x8BitPackedSignedAccelerated)


def with_dots(vk: Any, wishes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of VkDeviceCreateInfo with what these kernels need besides."""
    chain = vk.VkPhysicalDeviceShaderIntegerDotProductFeatures(pNext=wishes.get("pNext"), shaderIntegerDotProduct=1)
    names = [*wishes.get("ppEnabledExtensionNames", ()), EXTENSION]
    return {**wishes, "pNext": chain, "ppEnabledExtensionNames": names}
