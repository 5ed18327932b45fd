"""Single kernels on a real card: what the runtime's driver binding does, one launch at a time."""

import ctypes

import numpy as np

from dsv3c.runtime.devices.cuda.driver import Driver, Handle
from dsv3c.runtime.devices.cuda.gpu import Gpu, choose, devices
from dsv3c.runtime.devices.cuda.graphs import KernelLaunch
from dsv3c.targets.gpu.kernels.frame import THREADS

BEHIND = 4096  # bytes behind every operand that a kernel must leave alone
UNTOUCHED = 0xA5


class Card:
    """The first device. name, architecture: as sm_XX."""

    def __init__(self):
        self._driver = Driver()
        physical = choose(devices(self._driver), None)
        self.name = physical.name
        self.architecture = f"sm_{physical.capability[0]}{physical.capability[1]}"
        self._gpu = Gpu(self._driver, physical)
        self._modules = []

    def load(self, image):
        """A cubin or PTX: what `run` takes as its module."""
        module = Handle()
        self._driver.call("cuModuleLoadData", ctypes.byref(module), image + b"\0")
        self._modules.append(module)
        return module

    def run(self, module, name, arrays, grid):
        """Run one kernel; operands are changed in place."""
        gpu, function = self._gpu, Handle()
        self._driver.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        sizes = [-(-array.nbytes // 4) * 4 for array in arrays]
        hosts = [gpu.pinned(size + BEHIND, "an operand") for size in sizes]
        addresses = [gpu.allocate(size + BEHIND, "an operand") for size in sizes]
        for host, array, address in zip(hosts, arrays, addresses, strict=True):
            host[:] = UNTOUCHED
            host[: array.nbytes] = array.view(np.uint8)
            self._driver.call("cuMemcpyHtoDAsync", address, host.ctypes.data, host.size, gpu.stream)
        kernel = KernelLaunch(function, THREADS, addresses)
        kernel.set_grid(np.array(grid, np.uint32))
        kernel.launch(gpu)
        for host, address in zip(hosts, addresses, strict=True):
            self._driver.call("cuMemcpyDtoHAsync", host.ctypes.data, address, host.size, gpu.stream)
        gpu.wait(name)
        for host, array, size in zip(hosts, arrays, sizes, strict=True):
            array.view(np.uint8)[:] = host[: array.nbytes]
            assert (host[size:] == UNTOUCHED).all(), f"{name} writes behind an operand"
        for host, address in zip(hosts, addresses, strict=True):
            gpu.free_pinned(host)
            gpu.free(address)

    def close(self):
        for module in self._modules:
            self._gpu.discard("cuModuleUnload", module)
        self._gpu.close()
