"""TVM's C++ runtime for Metal, through tvm_ffi: memory of a GPU, and kernels from MSL. `tvm` is not imported.

Its libraries lie in the package apache-tvm. It puts copies and launches one behind the other into one command buffer,
which it hands to the GPU when the host waits.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.errors import (
    DeviceApiMissing,
    DeviceLost,
    DeviceMemoryRefused,
    LibraryInvalid,
    NoDeviceFound,
    UnknownDevice,
    WrongMachine,
)

METAL = 8  # of DLPack's device types
_EXISTS, _TOTAL_MEMORY = 0, 14  # of TVM's device attributes
_MOST_DEVICES = 32
_LIBRARIES = ("libtvm_runtime.dylib", "libtvm_runtime_metal.dylib")
_GET = "pip install 'dsv3c-runtime[metal]', which brings apache-tvm for macOS on Apple silicon"


def load_libraries() -> None:
    """TVM's runtime libraries into this process. Raises DeviceApiMissing, WrongMachine."""
    if sys.platform != "darwin":
        reason = f"it is a part of macOS, this is {platform.system()}"
        raise DeviceApiMissing(api="Metal", reason=reason, get="run the artifact on a Mac, or compile for this machine")
    if platform.machine() != "arm64":
        raise WrongMachine(wanted="arm64 on macOS", found=f"{platform.machine()} on macOS", suggestion="x86")
    import tvm_ffi  # noqa: F401  # first: the libraries refer to libtvm_ffi

    found = importlib.util.find_spec("tvm")
    if found is None or found.origin is None:
        raise DeviceApiMissing(api="Metal", reason="the package apache-tvm is not installed", get=_GET)
    for name in _LIBRARIES:
        try:
            ctypes.CDLL(str(Path(found.origin).parent / "lib" / name), ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise DeviceApiMissing(api="Metal", reason=str(error), get=_GET) from error


class Gpu:
    """Device `number` of TVM's device type `kind`. Raises DeviceApiMissing where the runtime is another version.

    Memory is handed out as tensors of bytes.
    """

    def __init__(self, number: int = 0, kind: int = METAL) -> None:
        import tvm_ffi

        self._ffi = tvm_ffi
        names = ("AllocWithScope", "CreateView", "CopyFromTo")
        try:
            self._allocate, self._view, self.copy = (
                tvm_ffi.get_global_func(f"runtime.TVMTensor{name}") for name in names
            )
            self._attribute = tvm_ffi.get_global_func("runtime.GetDeviceAttr")
            self._synchronize = tvm_ffi.get_global_func("runtime.Device_StreamSync")
            tvm_ffi.get_global_func("ffi.Module.load_from_bytes.metal")  # which `load` comes to
        except ValueError as error:
            raise DeviceApiMissing(
                api="Metal", reason=f"TVM's runtime is another version: {error}", get=_GET
            ) from error
        self.number, self._kind = number, kind
        self._device = tvm_ffi.device("metal" if kind == METAL else "cpu", number)
        self._bytes = tvm_ffi.dtype("uint8")
        self.name = f"Metal device {number}"

    def exists(self) -> bool:
        return bool(self._attribute(self._kind, self.number, _EXISTS))

    def available(self) -> int | None:
        """Bytes that Metal recommends to use at most; None if it does not say."""
        found = self._attribute(self._kind, self.number, _TOTAL_MEMORY)
        return int(found) if found else None

    def allocate(self, size: int, what: str) -> Any:
        """A buffer of `size` bytes, a multiple of 4. Raises DeviceMemoryRefused."""
        try:
            return self._allocate(self._ffi.Shape((size,)), self._bytes, self._device, None)
        except Exception as error:
            raise DeviceMemoryRefused(device=self.name, bytes=size, what=what) from error

    def part(self, buffer: Any, start: int, size: int) -> Any:
        """Bytes of a buffer, for copies only: kernels get whole buffers."""
        return self._view(buffer, self._ffi.Shape((size,)), self._bytes, start)

    def host(self, array: NDArray[Any]) -> Any:
        """A contiguous host array as a tensor of bytes, for copies."""
        return self._ffi.from_dlpack(array.view(np.uint8))

    def wait(self, what: str) -> None:
        """Until all that was asked for is done. Raises DeviceLost."""
        try:
            self._synchronize(self._device, 0)
        except Exception as error:
            raise DeviceLost(device=self.name, what=f"{what} ({_first_line(error)})") from error

    def load(self, library: Path) -> Any:
        """The module that imports a library's kernels; each is compiled when it is asked for. Raises LibraryInvalid."""
        try:
            return self._ffi.load_module(library.resolve(), keep_module_alive=False)
        except Exception as error:
            raise LibraryInvalid(path=library, reason=_first_line(error)) from error


def address(buffer: Any) -> ctypes.c_void_p:
    """What a kernel takes: on Metal the buffer object, not a place in memory."""
    return ctypes.c_void_p(buffer.data_ptr())


def devices() -> list[Gpu]:
    """Raises DeviceApiMissing, WrongMachine."""
    load_libraries()
    gpus: list[Gpu] = []
    while len(gpus) < _MOST_DEVICES and (gpu := Gpu(len(gpus))).exists():
        gpus.append(gpu)
    return gpus


def choose(wanted: str | None, found: Callable[[], Sequence[Gpu]] = devices) -> Gpu:
    """The GPU of that number, the first by default. Raises NoDeviceFound, UnknownDevice, and what `devices` raises."""
    gpus = found()
    if not gpus:
        raise NoDeviceFound(
            api="Metal", reason="the system lists none", get="run on the Mac itself: some virtual machines have no GPU"
        )
    numbers = {str(gpu.number): gpu for gpu in gpus}
    if wanted is not None and wanted not in numbers:
        raise UnknownDevice(api="Metal", name=wanted, known=", ".join(numbers))
    return numbers[wanted or "0"]


def listed() -> list[dict[str, Any]]:
    """The rows of `dsv3c doctor`; TVM's runtime tells no names."""
    return [
        {"number": g.number, "name": g.name, "type": "gpu", "memory": g.available() or 0, "capabilities": []}
        for g in devices()
    ]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
