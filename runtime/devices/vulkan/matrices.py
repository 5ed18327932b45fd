"""Cooperative matrices of a device (VK_KHR_cooperative_matrix): which of its sizes kernels are loaded with.

Kernels that require them have a tile of 64 x 64 sums in a workgroup, shared out among its subgroups, stage 32 values of
K at a time and bring back sixteen rows at a time. Factors are float16, sums float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from dsv3c.runtime.devices.vulkan.binding import check
from dsv3c.runtime.devices.vulkan.subgroups import THREADS

MATRIX = "cooperative-matrix"  # what forms of kernels require
EXTENSION = "VK_KHR_cooperative_matrix"
TILE, K_TILE, SUM_ROWS = 64, 32, 16
_FIRST = 1  # of the specialisation constants


@dataclass(frozen=True)
class Matrices:
    """Rows, columns and inner size of a matrix; rows and columns of what a subgroup has of the tile."""

    m: int
    n: int
    k: int
    rows: int
    columns: int

    @property
    def constants(self) -> dict[int, int]:
        """Specialisation constants by id."""
        return {_FIRST + i: getattr(self, field.name) for i, field in enumerate(fields(self))}


def choose(sizes: Iterable[tuple[int, int, int]], width: int) -> Matrices | None:
    """The largest of the sizes (m, n, k) that fit, with subgroups of `width` threads; None if none does."""
    found = [matrices for size in sizes if (matrices := _shared_out(size, width)) is not None]
    return max(found, key=lambda item: item.m * item.n * item.k, default=None)


def _shared_out(size: tuple[int, int, int], width: int) -> Matrices | None:
    """The rectangle of a subgroup nearest to a square, which loads the fewest matrices for its sums."""
    (m, n, k), area = size, TILE * TILE * width // THREADS
    possible = [rows for rows in (8, 16, 32, 64) if rows % m == 0 and area // rows <= TILE and area // rows % n == 0]
    if SUM_ROWS % m or K_TILE % k or not possible:
        return None
    rows = min(possible, key=lambda rows: rows + area // rows)
    return Matrices(m, n, k, rows, area // rows)


def matrices_of(vk: Any, instance: Any, handle: Any, width: int) -> Matrices | None:
    """What a physical device with subgroups of `width` threads is used with; None without."""
    names = {item.extensionName for item in vk.vkEnumerateDeviceExtensionProperties(handle, None)}
    if not width or EXTENSION not in names:
        return None
    has, more = vk.VkPhysicalDeviceCooperativeMatrixFeaturesKHR(), vk.VkPhysicalDeviceVulkan12Features()
    stages = vk.VkPhysicalDeviceCooperativeMatrixPropertiesKHR()
    vk.vkGetPhysicalDeviceFeatures2(handle, vk.VkPhysicalDeviceFeatures2(pNext=has))
    vk.vkGetPhysicalDeviceFeatures2(handle, vk.VkPhysicalDeviceFeatures2(pNext=more))
    vk.vkGetPhysicalDeviceProperties2(handle, vk.VkPhysicalDeviceProperties2(pNext=stages))
    features = has.cooperativeMatrix and more.shaderFloat16 and more.vulkanMemoryModel
    if not features or not stages.cooperativeMatrixSupportedStages & vk.VK_SHADER_STAGE_COMPUTE_BIT:
        return None
    return choose(_sizes(vk, instance, handle), width)


def with_matrices(vk: Any, wishes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of VkDeviceCreateInfo with what these kernels need besides."""
    chain = vk.VkPhysicalDeviceCooperativeMatrixFeaturesKHR(pNext=wishes.get("pNext"), cooperativeMatrix=1)
    chain = vk.VkPhysicalDeviceVulkan12Features(pNext=chain, shaderFloat16=1, vulkanMemoryModel=1)
    names = [*wishes.get("ppEnabledExtensionNames", ()), EXTENSION]
    return {**wishes, "pNext": chain, "ppEnabledExtensionNames": names}


def _sizes(vk: Any, instance: Any, handle: Any) -> list[tuple[int, int, int]]:
    """M, N and K of the matrices with float16 factors and float32 sums that a subgroup shares."""
    name = "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"
    # The package's wrapper leaves out sType, which drivers may look at.
    function = vk.ffi.cast(f"PFN_{name}", vk.lib.vkGetInstanceProcAddr(instance, name.encode()))
    count = vk.ffi.new("uint32_t*")
    check(vk, function(handle, count, vk.ffi.NULL))
    wanted = {"sType": vk.VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR}
    rows = vk.ffi.new("VkCooperativeMatrixPropertiesKHR[]", [wanted] * count[0])
    check(vk, function(handle, count, rows))
    half, single = vk.VK_COMPONENT_TYPE_FLOAT16_KHR, vk.VK_COMPONENT_TYPE_FLOAT32_KHR
    return [
        (row.MSize, row.NSize, row.KSize)
        for row in rows[0 : count[0]]
        if (row.AType, row.BType, row.CType, row.ResultType) == (half, half, single, single)
        and row.scope == vk.VK_SCOPE_SUBGROUP_KHR
    ]
