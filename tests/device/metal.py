"""Single kernels on a Gpu of the Metal runtime: every operand in a buffer of its own, one launch a call."""

import numpy as np

from dsv3c.runtime.metal_gpu import Kernel, address
from dsv3c.targets.gpu.kernels.frame import THREADS
from dsv3c.targets.gpu.source import METAL, source


def axes(kernel):
    """Of the grid of a PrimFunc."""
    return kernel.script().count("blockIdx.")


class Runner:
    """Runs PrimFuncs as the op tests want it."""

    def __init__(self, gpu):
        self._gpu = gpu

    def run(self, name, kernel, arrays, grid):
        count = axes(kernel)
        module = self._gpu.load(
            {"kernel_under_test": Kernel(source({"kernel_under_test": kernel}, METAL), len(arrays), count)}
        )
        padded = [np.pad(array.view(np.uint8), (0, -array.nbytes % 4)) for array in arrays]
        buffers = [self._gpu.allocate(max(4, array.size), name) for array in padded]
        for array, buffer in zip(padded, buffers, strict=True):
            if array.size:
                self._gpu.copy(self._gpu.host(array), buffer)
        module.get_function("kernel_under_test")(*map(address, buffers), *grid[:count], THREADS)
        self._gpu.wait(name)
        for array, whole, buffer in zip(arrays, padded, buffers, strict=True):
            if whole.size:
                self._gpu.copy(buffer, self._gpu.host(whole))
            array.view(np.uint8)[:] = whole[: array.nbytes]
