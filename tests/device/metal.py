"""Single kernels on a Gpu of the Metal runtime: every operand in a buffer of its own, one launch a call."""

from uuid import uuid4

import numpy as np

from dsv3c.runtime.devices.metal.gpu import address
from dsv3c.targets.gpu.kernels.frame import THREADS
from dsv3c.targets.metal.library import link_library
from dsv3c.targets.metal.msl import printed
from dsv3c.targets.metal.payload import library_bin

NAME = "kernel_under_test"


class Runner:
    """Runs PrimFuncs as the op tests want it."""

    def __init__(self, gpu, folder):
        self._gpu, self._folder = gpu, folder

    def run(self, name, kernel, arrays, grid):
        text = printed(NAME, kernel)
        library = link_library(library_bin({NAME: text}), self._folder / f"{uuid4()}.so", None)
        module = self._gpu.load(library)
        padded = [np.pad(array.view(np.uint8), (0, -array.nbytes % 4)) for array in arrays]
        buffers = [self._gpu.allocate(max(4, array.size), name) for array in padded]
        for array, buffer in zip(padded, buffers, strict=True):
            if array.size:
                self._gpu.copy(self._gpu.host(array), buffer)
        module.get_function(NAME, query_imports=True)(*map(address, buffers), *grid[: len(text.tags) - 1], THREADS)
        self._gpu.wait(name)
        for array, whole, buffer in zip(arrays, padded, buffers, strict=True):
            if whole.size:
                self._gpu.copy(buffer, self._gpu.host(whole))
            array.view(np.uint8)[:] = whole[: array.nbytes]
