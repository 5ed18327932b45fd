"""The binary of an artifact that fits a device, loaded: its kernels by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ctypes import byref

from dsv3c.runtime.artifact.artifact import Artifact, Level
from dsv3c.runtime.devices.cuda import driver as cuda
from dsv3c.runtime.devices.cuda.driver import CudaError, Handle
from dsv3c.runtime.devices.cuda.gpu import Gpu, Physical, dotted
from dsv3c.runtime.errors import DeviceLacks, KernelMissing, LibraryInvalid

_SM, _PTX = "sm_", "compute_"


def capabilities(physical: Physical) -> frozenset[str]:
    """sm_XY of the machine code that a device runs, that of its own generation up to its own; compute_XY of the PTX
    that its driver can translate for it."""
    major, minor = physical.capability
    code = {f"{_SM}{major}{lower}" for lower in range(minor + 1)}
    known = (
        f"{above}{below}" for above in range(3, major + 1) for below in range(10) if (above, below) <= (major, minor)
    )
    return frozenset(code | {f"{_PTX}{number}" for number in known})


def fitting_level(levels: Sequence[Level], physical: Physical) -> Level:
    """The last of the levels that the device has everything for. Raises DeviceLacks."""
    there = capabilities(physical)
    fitting = [level for level in levels if there.issuperset(level.requires)]
    if fitting:
        return fitting[-1]
    major, minor = physical.capability
    names = ", ".join(level.name for level in levels)
    raise DeviceLacks(
        device=physical.name,
        lacks=f"it has compute capability {dotted(physical.capability)}, the artifact has kernels for {names}",
        hint_text=f"compile for it: dsv3c compile --target cuda:arch={_SM}{major}{minor}, or take another --device",
    )


class Module:
    """All kernels of one level; of a fat binary the driver takes the image of that level, by the same rule.

    Raises LibraryInvalid, KernelMissing, and as `Gpu`.
    """

    def __init__(self, gpu: Gpu, artifact: Artifact, level: Level, functions: Iterable[str]) -> None:
        self._gpu, self._handle = gpu, Handle()
        path = artifact.folder / level.file
        # Fat binaries and cubins know their size; PTX, which older artifacts have as a file, ends with a zero byte.
        image = artifact.checked_bytes(level.file) + b"\0"
        with gpu.guarded(f"the kernels of {level.file}"):
            try:
                gpu.driver.call("cuModuleLoadData", byref(self._handle), image)
            except CudaError as error:
                if error.code in cuda.LOST or error.code == cuda.OUT_OF_MEMORY:
                    raise
                reason = f"{error} (driver {gpu.driver.dotted_version})"
                raise LibraryInvalid(path=path, reason=reason) from error
        self.functions: dict[str, Handle] = {}
        for name in functions:
            function = Handle()
            try:
                gpu.driver.call("cuModuleGetFunction", byref(function), self._handle, name.encode())
            except CudaError as error:
                self.close()
                raise KernelMissing(path=path, name=name) from error
            self.functions[name] = function

    def close(self) -> None:
        self._gpu.discard("cuModuleUnload", self._handle)
