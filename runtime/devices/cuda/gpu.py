"""One GPU: the choice among several, its context, memory, and the stream that all work goes through."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import byref, c_int, c_size_t, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.devices.cuda import driver as cuda
from dsv3c.runtime.devices.cuda.driver import API, Address, CudaError, Driver, Handle
from dsv3c.runtime.errors import (
    DeviceLost,
    DeviceMemoryRefused,
    DriverFailed,
    NoDeviceFound,
    UnknownDevice,
)


@dataclass(frozen=True)
class Physical:
    """number: as `--device` takes it. handle: CUdevice. capability: (major, minor) of the compute capability.
    memory: bytes."""

    number: int
    handle: int
    name: str
    capability: tuple[int, int]
    memory: int

    def described(self) -> str:
        return f"{self.number} ({self.name}, compute capability {dotted(self.capability)})"


def dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def devices(driver: Driver) -> list[Physical]:
    """Raises NoDeviceFound."""
    get = "check the card with nvidia-smi; in a container, start it with --gpus all"
    count = c_int()
    try:
        driver.call("cuInit", 0)
        driver.call("cuDeviceGetCount", byref(count))
    except CudaError as error:
        raise NoDeviceFound(api=API, reason=str(error), get=get) from error
    if count.value == 0:
        raise NoDeviceFound(api=API, reason="the driver counts none", get=get)
    return [_physical(driver, number) for number in range(count.value)]


def choose(found: Sequence[Physical], wanted: str | None) -> Physical:
    """By number or by a part of the name; the first without a wish. Raises UnknownDevice."""
    if wanted is None:
        return found[0]
    text = wanted.strip().lower()
    for device in found:
        if text == str(device.number) or (text and not text.isdigit() and text in device.name.lower()):
            return device
    raise UnknownDevice(api=API, name=wanted, known=", ".join(device.described() for device in found))


def _physical(driver: Driver, number: int) -> Physical:
    handle, name, memory = c_int(), ctypes.create_string_buffer(256), c_size_t()
    driver.call("cuDeviceGet", byref(handle), number)
    driver.call("cuDeviceGetName", name, len(name), handle)
    driver.call("cuDeviceTotalMem", byref(memory), handle)
    capability = attribute(driver, handle.value, cuda.MAJOR), attribute(driver, handle.value, cuda.MINOR)
    return Physical(number, handle.value, name.value.decode(errors="replace"), capability, memory.value)


def attribute(driver: Driver, handle: int, which: int) -> int:
    value = c_int()
    driver.call("cuDeviceGetAttribute", byref(value), which, handle)
    return value.value


class Gpu:
    """The primary context of a device, which threads share, and one stream in it.

    Every public function of a device enters the context first, since each thread has its own current one. Memory is
    given back by `close`, or before by `free` and `free_pinned`. Raises DeviceMemoryRefused, DeviceLost, DriverFailed.
    """

    def __init__(self, driver: Driver, physical: Physical) -> None:
        self.driver, self.physical, self.name = driver, physical, physical.name
        self._memory: list[int] = []
        self._pinned: list[int] = []
        self.context, self.stream = Handle(), Handle()
        with self.guarded("opening"):
            driver.call("cuDevicePrimaryCtxRetain", byref(self.context), physical.handle)
            self.enter()
            driver.call("cuStreamCreate", byref(self.stream), cuda.NON_BLOCKING_STREAM)

    def enter(self) -> None:
        """Make the context the calling thread's."""
        self.driver.call("cuCtxSetCurrent", self.context)

    def attribute(self, which: int) -> int:
        return attribute(self.driver, self.physical.handle, which)

    def available(self) -> int:
        """Free bytes of its memory."""
        free, total = c_size_t(), c_size_t()
        self.driver.call("cuMemGetInfo", byref(free), byref(total))
        return free.value

    def allocate(self, size: int, what: str) -> int:
        """Address of `size` bytes of its memory, cleared."""
        address = Address()
        with self.guarded(what, size):
            self.driver.call("cuMemAlloc", byref(address), max(size, 4))
            self._memory.append(address.value)
            self.driver.call("cuMemsetD8Async", address, 0, max(size, 4), self.stream)
        return address.value

    def free(self, address: int) -> None:
        self._memory.remove(address)
        self.driver.call("cuMemFree", address)

    def pinned(self, size: int, what: str) -> NDArray[np.uint8]:
        """u8 [size], zero: host memory that the device copies from and to while the host goes on."""
        address = c_void_p()
        with self.guarded(what, size):
            self.driver.call("cuMemAllocHost", byref(address), max(size, 1))
        assert address.value is not None
        self._pinned.append(address.value)
        array = np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(address.value))
        array[:] = 0
        return array

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        self._pinned.remove(array.ctypes.data)
        self.driver.call("cuMemFreeHost", array.ctypes.data)

    def wait(self, what: str) -> None:
        """Until all work of the stream is done."""
        with self.guarded(what):
            self.driver.call("cuStreamSynchronize", self.stream)

    @contextmanager
    def guarded(self, what: str, size: int = 0) -> Iterator[None]:
        """Faults of the runtime for failures of the driver. size: bytes that `what` asks for."""
        try:
            yield
        except CudaError as error:
            if error.code == cuda.OUT_OF_MEMORY:
                raise DeviceMemoryRefused(device=self.name, bytes=size, what=what) from error
            if error.code in cuda.LOST:
                raise DeviceLost(device=self.name, what=f"{what} ({error})") from error
            raise DriverFailed(device=self.name, what=what, reason=str(error)) from error

    def close(self) -> None:
        """Results are of no use: a lost device is torn down as any other."""
        self._attempt("cuCtxSetCurrent", self.context)
        if self.stream.value is not None:
            self._attempt("cuStreamSynchronize", self.stream)
            self._attempt("cuStreamDestroy", self.stream)
        for address in self._memory:
            self._attempt("cuMemFree", address)
        for address in self._pinned:
            self._attempt("cuMemFreeHost", address)
        self._memory, self._pinned = [], []
        if self.context.value is not None:
            self._attempt("cuDevicePrimaryCtxRelease", self.physical.handle)

    def discard(self, name: str, handle: Any) -> None:
        """Give something back, from whatever thread, by the driver's function `name`; its result is of no use."""
        self._attempt("cuCtxSetCurrent", self.context)
        self._attempt(name, handle)

    def _attempt(self, name: str, *arguments: Any) -> None:
        self.driver.raw(name)(*arguments)
