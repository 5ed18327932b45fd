"""What is copied besides a step on a Vulkan device: rows of the caches within it, and to and from the host by way of a
staging buffer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.plan import Buffer, Plan
from dsv3c.runtime.devices.device_memory import disjoint
from dsv3c.runtime.devices.memory import empty_rows
from dsv3c.runtime.devices.vulkan.gpu import DeviceBuffer, Gpu
from dsv3c.runtime.devices.vulkan.memory import Place, Places

_Copy = tuple[DeviceBuffer, int, DeviceBuffer, int, int]  # from a byte of a buffer to a byte of another, bytes


class Slots:
    """The caches of a plan, where they lie. Raises DeviceMemoryRefused, DeviceLost."""

    def __init__(self, gpu: Gpu, plan: Plan, places: Places) -> None:
        self._gpu = gpu
        self._caches: dict[str, tuple[Buffer, Place]] = {
            cache.name: (cache, place) for cache, place in zip(plan.caches, places.caches, strict=True)
        }

    def copy(self, source: int, target: int, count: int) -> None:
        """As `Device.copy_slots`."""

        def piece(cache: Buffer, place: Place, start: int, size: int) -> _Copy:
            row, first = cache.slot_bytes, place.offset
            return (
                place.buffer,
                first + (source + start) * row,
                place.buffer,
                first + (target + start) * row,
                size * row,
            )

        rounds = [
            [piece(cache, place, start, size) for cache, place in self._caches.values()]
            for start, size in disjoint(source, target, count)
        ]
        _submit(self._gpu, rounds, "a copy of cache pages")

    def read(self, start: int, count: int) -> Mapping[str, NDArray[Any]]:
        """As `Device.read_slots`."""
        rows = {name: empty_rows(cache, count) for name, (cache, _) in self._caches.items()}
        read_back(
            self._gpu,
            {name: self._place(name, start) for name in rows},
            {name: array.reshape(-1).view(np.uint8) for name, array in rows.items()},
            "cache pages that are read",
        )
        return rows

    def write(self, start: int, rows: Mapping[str, NDArray[Any]]) -> None:
        """As `Device.write_slots`."""
        bytes_of = {name: np.ascontiguousarray(rows[name]).reshape(-1).view(np.uint8) for name in self._caches}
        staging = self._gpu.input_buffer(sum(data.size for data in bytes_of.values()), "cache pages that are written")
        try:
            assert staging.mapped is not None
            copies, at = [], 0
            for name, data in bytes_of.items():
                staging.mapped[at : at + data.size] = data
                copies.append((staging, at, *self._place(name, start), data.size))
                at += data.size
            _submit(self._gpu, [copies], "cache pages that are written")
        finally:
            self._gpu.free(staging)

    def _place(self, name: str, slot: int) -> tuple[DeviceBuffer, int]:
        cache, place = self._caches[name]
        return place.buffer, place.offset + slot * cache.slot_bytes


def read_back(
    gpu: Gpu, places: Mapping[Any, tuple[DeviceBuffer, int]], targets: Mapping[Any, NDArray[np.uint8]], what: str
) -> None:
    """Fill host arrays with what lies in device memory from each one's place on."""
    staging = gpu.output_buffer(sum(target.size for target in targets.values()), what)
    try:
        copies, at = [], 0
        for name, target in targets.items():
            copies.append((*places[name], staging, at, target.size))
            at += target.size
        _submit(gpu, [copies], what)
        assert staging.mapped is not None
        for target, (_, _, _, at, size) in zip(targets.values(), copies, strict=True):
            target[:] = staging.mapped[at : at + size]
    finally:
        gpu.free(staging)


def _submit(gpu: Gpu, rounds: Iterable[Iterable[_Copy]], what: str) -> None:
    """Copies of one round are independent of each other, and done before the next; then all are seen."""
    vk, commands = gpu.vk, gpu.commands()
    vk.vkBeginCommandBuffer(commands, vk.VkCommandBufferBeginInfo())
    for copies in rounds:
        for source, here, target, there, size in copies:
            if size:
                region = vk.VkBufferCopy(srcOffset=here, dstOffset=there, size=size)
                vk.vkCmdCopyBuffer(commands, source.handle, target.handle, 1, [region])
        _order_copies(vk, commands)
    vk.vkEndCommandBuffer(commands)
    try:
        gpu.submit(gpu.submission(commands), what)
    finally:
        gpu.discard(commands)


def _order_copies(vk: Any, commands: Any) -> None:
    """What was copied is seen by the copies and kernels that follow, and by the host."""
    read, write = vk.VK_ACCESS_TRANSFER_READ_BIT, vk.VK_ACCESS_TRANSFER_WRITE_BIT
    shaders = vk.VK_ACCESS_SHADER_READ_BIT | vk.VK_ACCESS_SHADER_WRITE_BIT
    barrier = vk.VkMemoryBarrier(srcAccessMask=write, dstAccessMask=read | write | shaders | vk.VK_ACCESS_HOST_READ_BIT)
    stage = vk.VK_PIPELINE_STAGE_TRANSFER_BIT
    after = stage | vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | vk.VK_PIPELINE_STAGE_HOST_BIT
    vk.vkCmdPipelineBarrier(commands, stage, after, 0, 1, [barrier], 0, None, 0, None)
