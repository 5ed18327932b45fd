"""Subgroups of a device: how many threads shuffle registers, which kernels that do so must know.

They number their threads by subgroup and place in it. That is right where every subgroup of a workgroup is full, which
Vulkan promises for the asking (VK_EXT_subgroup_size_control); then each has `subgroupSize` threads, since no stage here
allows a varying size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHUFFLE = "subgroup-shuffle"  # what forms of kernels require
EXTENSION = "VK_EXT_subgroup_size_control"  # part of Vulkan only from 1.3 on
THREADS = 128  # of a workgroup: subgroups divide it
NARROWEST = 4
WIDTH = 0  # the specialisation constant


def subgroup_width(vk: Any, handle: Any) -> int:
    """Threads of the physical device's subgroups; 0 if they cannot be used."""
    if EXTENSION not in {item.extensionName for item in vk.vkEnumerateDeviceExtensionProperties(handle, None)}:
        return 0
    has, size = vk.VkPhysicalDeviceSubgroupProperties(), vk.VkPhysicalDeviceSubgroupSizeControlFeatures()
    vk.vkGetPhysicalDeviceProperties2(handle, vk.VkPhysicalDeviceProperties2(pNext=has))
    vk.vkGetPhysicalDeviceFeatures2(handle, vk.VkPhysicalDeviceFeatures2(pNext=size))
    operations = vk.VK_SUBGROUP_FEATURE_BASIC_BIT | vk.VK_SUBGROUP_FEATURE_SHUFFLE_BIT
    usable = (
        has.supportedOperations & operations == operations
        and has.supportedStages & vk.VK_SHADER_STAGE_COMPUTE_BIT
        and size.computeFullSubgroups
        and has.subgroupSize >= NARROWEST
        and THREADS % has.subgroupSize == 0
    )
    return int(has.subgroupSize) if usable else 0


def device_wishes(vk: Any) -> dict[str, Any]:
    """Of VkDeviceCreateInfo, so that full subgroups can be asked for."""
    full = vk.VkPhysicalDeviceSubgroupSizeControlFeatures(computeFullSubgroups=1)
    return {"pNext": full, "ppEnabledExtensionNames": [EXTENSION]}


class Stage:
    """info: the VkPipelineShaderStageCreateInfo of a module.

    constants: specialisation constants by id; only kernels that have a use for full subgroups have any.
    Keep it until the pipeline is made: the package copies structs, but does not keep what they point to.
    """

    def __init__(self, vk: Any, module: Any, constants: Mapping[int, int]) -> None:
        stated = {"stage": vk.VK_SHADER_STAGE_COMPUTE_BIT, "module": module, "pName": "main"}
        if constants:
            self._data = vk.ffi.new("uint32_t[]", list(constants.values()))
            entries = [
                vk.VkSpecializationMapEntry(constantID=constant, offset=4 * i, size=4)
                for i, constant in enumerate(constants)
            ]
            self._constants = vk.VkSpecializationInfo(pMapEntries=entries, dataSize=4 * len(entries), pData=self._data)
            stated |= {
                # Not by the package's own name for it, which is None.
                "flags": vk.lib.VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT,
                "pSpecializationInfo": self._constants,
            }
        self.info = vk.VkPipelineShaderStageCreateInfo(**stated)
