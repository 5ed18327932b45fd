"""What a session asks of a device. One small class a target family implements it; `open_device` picks by target."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.errors import DeviceNotChosen, NoDevice, ThreadsNotChosen

Floats = NDArray[np.float32]
CPU_FAMILIES = ("x86", "arm")
GPU_FAMILIES = ("vulkan", "cuda", "metal")


@dataclass(frozen=True)
class Placement:
    """Where a model runs.

    threads: of kernels for a CPU, one a performance core by default. numa: "auto" divides them and the weights among
    the memory nodes of the machine, "off" does not. device: which GPU, as `open_device` takes it.
    gpu_layers: how many of the last layers run on the GPU, all by default; the layers before them run on the CPU, with
    the artifact `cpu_artifact` of the same model.
    """

    threads: int | None = None
    device: str | None = None
    gpu_layers: int | None = None
    cpu_artifact: str | os.PathLike[str] | None = None
    numa: str = "auto"


def family_of(artifact: Artifact) -> str:
    """The target's name without its options."""
    return artifact.manifest.target.name.split(":", 1)[0]


class Device(Protocol):
    """Buffers of one artifact and the means to run its entries.

    `inputs` are host arrays by name (tokens, positions, …, control), written before `run` and left alone by it.
    """

    @property
    def forks(self) -> bool:
        """Whether a forked child may go on using it, as the parent does, each for itself."""

    @property
    def inputs(self) -> Mapping[str, NDArray[Any]]: ...

    @property
    def slots(self) -> int:
        """Tokens the cache pool holds."""

    @property
    def prefill_min_tokens(self) -> int | None:
        """Smallest step of the entry `prefill` on this device, where it is not the plan's."""

    def run(self, entry: str) -> None:
        """Run one entry of the plan on the current inputs; returns when its outputs can be read."""

    def run_timed(self, entry: str) -> NDArray[np.float64]:
        """As `run`; seconds of each call of the entry, in the order of the plan."""

    def output(self, entry: str, name: str) -> NDArray[Any]:
        """Flat host view of an entry's output, valid until the next `run`: "token" i32, all others f32."""

    def experts(self, entry: str) -> Mapping[int, NDArray[np.int32]]:
        """By layer, a copy of what the plan's `Entry.experts` says, of the tokens of the last `run`, which was of that
        entry: flat, as many ids a token as it visits experts. Costs nothing where nobody asks."""

    def copy_slots(self, source: int, target: int, count: int) -> None:
        """Copy cache rows [source, source + count) to [target, target + count) in every layer."""

    def read_slots(self, start: int, count: int) -> Mapping[str, NDArray[Any]]:
        """A copy of rows [start, start + count) of every cache, by its name: [count, width], of the cache's type;
        bfloat16 as its uint16 bit patterns."""

    def write_slots(self, start: int, rows: Mapping[str, NDArray[Any]]) -> None:
        """Put rows as `read_slots` gives them, of every cache, from `start` on."""

    def report(self) -> dict[str, Any]:
        """What was obtained: kernel level, threads, bytes, huge pages."""

    def close(self) -> None:
        """Give the memory back. Views handed out must not be used afterwards."""


def open_device(
    artifact: Artifact, slots: int, threads: int | None, chosen: str | None = None, numa: str = "auto"
) -> Device:
    """The device for the artifact's target; `chosen` names one of several. numa: of a CPU.

    Raises NoDevice, DeviceNotChosen or ThreadsNotChosen where there is no choice, or what the device module raises.
    """
    family = family_of(artifact)
    if family in GPU_FAMILIES and threads is not None:
        raise ThreadsNotChosen(threads=threads, target=artifact.manifest.target.name)
    if family == "vulkan":
        from dsv3c.runtime.devices.vulkan.device import VulkanDevice

        return VulkanDevice(artifact, slots, chosen)
    if family == "cuda":
        from dsv3c.runtime.devices.cuda.device import CudaDevice

        return CudaDevice(artifact, slots, chosen)
    if family == "metal":
        from dsv3c.runtime.devices.metal.device import MetalDevice

        return MetalDevice(artifact, slots, chosen)
    if chosen is not None:
        raise DeviceNotChosen(name=chosen, target=artifact.manifest.target.name)
    if family in CPU_FAMILIES:
        # Imported here so that a runtime for one device never loads another's library.
        from dsv3c.runtime.devices.cpu.device import CpuDevice

        return CpuDevice(artifact, slots, threads, numa)
    if family == "onnx":
        from dsv3c.runtime.devices.onnx.device import OrtDevice

        return OrtDevice(artifact, slots, threads)
    raise NoDevice(target=artifact.manifest.target.name, known="x86, arm, cuda, vulkan, metal, onnx")
