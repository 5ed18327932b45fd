"""Where every buffer of a plan lies in the device's memory, what that takes, and the weights brought there.

Weights and caches are put one behind the other into few large allocations; results share the arena; what the host
writes lies in memory that it sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.artifact import WEIGHTS, Artifact
from dsv3c.runtime.artifact.plan import Plan
from dsv3c.runtime.devices.device_memory import Needs
from dsv3c.runtime.devices.memory import map_descriptor, typed
from dsv3c.runtime.devices.vulkan.gpu import DeviceBuffer, Gpu
from dsv3c.runtime.errors import DeviceLacks

PLACE = 256  # minStorageBufferOffsetAlignment is at most this
STAGING = 32 << 20  # of each of two staging buffers


@dataclass(frozen=True)
class Place:
    """A run of bytes of a device buffer."""

    buffer: DeviceBuffer
    offset: int
    size: int


class Places:
    """Memory of a plan on a device: all of it allocated and the weights uploaded when it is made.

    of: a Place for each buffer of the plan. inputs: host arrays by name. caches: the Places of `plan.caches`.
    Raises DeviceMemoryShort before anything is allocated, DeviceMemoryRefused, DeviceLacks.
    """

    def __init__(self, gpu: Gpu, artifact: Artifact, slots: int) -> None:
        plan = artifact.plan
        self.needs = needs(gpu, plan, slots)
        self.needs.require(gpu.name, gpu.available())
        self._gpu = gpu
        self.arena = gpu.device_buffer(plan.arena_bytes, "the activations")
        kinds = {kind: [i for i, buffer in enumerate(plan.buffers) if buffer.kind == kind] for kind in _KINDS}
        self.caches = _allocated(gpu, [slots * cache.slot_bytes for cache in plan.caches], "the cache")
        weights = _allocated(gpu, [plan.buffers[i].bytes for i in kinds["weight"]], "the weights")
        inputs = [gpu.input_buffer(plan.buffers[i].bytes, plan.buffers[i].name) for i in kinds["input"]]
        self.of: dict[int, Place] = {}
        for i in kinds["arena"]:
            self.of[i] = Place(self.arena, plan.buffers[i].offset, plan.buffers[i].bytes)
        self.of |= zip(kinds["cache"], self.caches, strict=True)
        self.of |= zip(kinds["weight"], weights, strict=True)
        self.of |= {
            i: Place(buffer, 0, plan.buffers[i].bytes) for i, buffer in zip(kinds["input"], inputs, strict=True)
        }
        self.inputs: Mapping[str, NDArray[Any]] = {
            plan.buffers[i].name: _array(plan, i, self.of[i]) for i in kinds["input"]
        }
        for array in self.inputs.values():
            array[:] = 0
        _zero(gpu, [Place(self.arena, 0, self.arena.size), *self.caches])
        _upload(gpu, artifact, {i: self.of[i] for i in kinds["weight"]})


_KINDS = ("arena", "cache", "weight", "input")


def needs(gpu: Gpu, plan: Plan, slots: int) -> Needs:
    def total(kind: str) -> int:
        return sum(_padded(buffer.bytes) for buffer in plan.buffers if buffer.kind == kind)

    cache = sum(_padded(slots * cache.slot_bytes) for cache in plan.caches)
    return Needs(total("weight"), cache, plan.arena_bytes, total("input"), 0 if gpu.direct else 2 * STAGING)


def _padded(size: int) -> int:
    return -(-size // PLACE) * PLACE


def _allocated(gpu: Gpu, sizes: Sequence[int], what: str) -> list[Place]:
    """A place for each size, in buffers as large as one allocation may be."""
    runs: list[list[int]] = [[]]
    filled = 0
    for size in map(_padded, sizes):
        if size > gpu.largest_allocation:
            lacks = f"maxMemoryAllocationSize is {gpu.largest_allocation}, {size} is needed for {what}"
            raise DeviceLacks(
                device=gpu.name, lacks=lacks, hint_text="lower context or max_batch, or compile with fewer bits"
            )
        if filled + size > gpu.largest_allocation:
            runs.append([])
            filled = 0
        runs[-1].append(size)
        filled += size
    places, order = [], iter(sizes)
    for run in runs:
        buffer, at = gpu.device_buffer(sum(run), what), 0
        for padded in run:
            places.append(Place(buffer, at, next(order)))
            at += padded
    return places


def _array(plan: Plan, index: int, place: Place) -> NDArray[Any]:
    buffer = plan.buffers[index]
    assert place.buffer.mapped is not None
    return typed(place.buffer.mapped, place.offset, buffer.dtype, buffer.size)


def _zero(gpu: Gpu, places: Sequence[Place]) -> None:
    """Memory may come with what another program left in it."""
    vk, commands = gpu.vk, gpu.commands()
    vk.vkBeginCommandBuffer(commands, vk.VkCommandBufferBeginInfo())
    for buffer in {id(place.buffer): place.buffer for place in places}.values():
        vk.vkCmdFillBuffer(commands, buffer.handle, 0, buffer.size, 0)
    vk.vkEndCommandBuffer(commands)
    gpu.submit(gpu.submission(commands), "the clearing of its memory")


def _upload(gpu: Gpu, artifact: Artifact, places: Mapping[int, Place]) -> None:
    """The weights from the mapped file to their places, in the order of the file."""
    path, size = artifact.folder / WEIGHTS, artifact.manifest.files[WEIGHTS].size
    data = map_descriptor(artifact.open_weights(), path, size)
    buffers = artifact.plan.buffers
    starts = {i: artifact.tensors[buffers[i].tensor].offset + buffers[i].offset for i in places}
    order = sorted(places, key=starts.__getitem__)
    if gpu.direct:
        for i in order:
            place, start = places[i], starts[i]
            assert place.buffer.mapped is not None
            place.buffer.mapped[place.offset : place.offset + place.size] = data[start : start + place.size]
        return
    pieces = [
        (starts[i] + at, places[i].buffer, places[i].offset + at, min(STAGING, places[i].size - at))
        for i in order
        for at in range(0, places[i].size, STAGING)
    ]
    staging = [gpu.input_buffer(STAGING, "staging of the weights") for _ in range(2)]
    _copy_staged(gpu, data, _batches(pieces), staging)
    for buffer in staging:
        gpu.free(buffer)


_Piece = tuple[int, DeviceBuffer, int, int]  # first byte in the file, device buffer, first byte there, bytes


def _batches(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
    """Runs of pieces that fill a staging buffer each."""
    batches: list[list[_Piece]] = []
    room = 0
    for piece in pieces:
        if piece[3] > room:
            batches.append([])
            room = STAGING
        batches[-1].append(piece)
        room -= piece[3]
    return batches


def _copy_staged(
    gpu: Gpu, data: NDArray[np.uint8], batches: Sequence[list[_Piece]], staging: Sequence[DeviceBuffer]
) -> None:
    """While the device copies from one staging buffer, the other is filled from the file."""
    vk = gpu.vk

    def read(number: int) -> None:
        target, at = staging[number % 2].mapped, 0
        assert target is not None
        for start, _, _, size in batches[number]:
            target[at : at + size] = data[start : start + size]
            at += size

    with ThreadPoolExecutor(max_workers=1) as reader:
        reading = reader.submit(read, 0) if batches else None
        for number, batch in enumerate(batches):
            assert reading is not None
            reading.result()
            if number + 1 < len(batches):
                reading = reader.submit(read, number + 1)
            commands, at = gpu.commands(), 0
            vk.vkBeginCommandBuffer(commands, vk.VkCommandBufferBeginInfo())
            for _, buffer, offset, size in batch:
                region = vk.VkBufferCopy(srcOffset=at, dstOffset=offset, size=size)
                vk.vkCmdCopyBuffer(commands, staging[number % 2].handle, buffer.handle, 1, [region])
                at += size
            vk.vkEndCommandBuffer(commands)
            gpu.submit(gpu.submission(commands), "the upload of the weights")
            gpu.discard(commands)
