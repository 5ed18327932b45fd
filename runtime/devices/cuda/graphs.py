"""One CUDA graph for each choice of launches: built once, replayed every step.

Grids follow T and R. Steps of one token, as in decoding, have the same grids every time, so nothing is changed before a
replay; another number of tokens changes the nodes whose grid it touches, about a microsecond each beside milliseconds
of work. The other way, the largest grid with an early exit, would start thousands of empty workgroups a kernel.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import byref, c_uint, c_uint64, c_void_p

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.devices.cuda.driver import Handle, KernelNode
from dsv3c.runtime.devices.cuda.gpu import Gpu
from dsv3c.runtime.devices.dispatch import Launch

Grids = NDArray[np.uint32]  # [launches, 3]


class KernelLaunch:
    """One launch with its arguments, which stay where they are for as long as this object lives."""

    def __init__(self, function: Handle, threads: int, addresses: Sequence[int]) -> None:
        self._values = (c_uint64 * len(addresses))(*addresses)
        first, width = ctypes.addressof(self._values), ctypes.sizeof(c_uint64)
        self._pointers = (c_void_p * len(addresses))(*(first + i * width for i in range(len(addresses))))
        self.node = KernelNode(
            function=function,
            grid=(c_uint * 3)(1, 1, 1),
            block=(c_uint * 3)(threads, 1, 1),
            parameters=ctypes.cast(self._pointers, ctypes.POINTER(c_void_p)),
        )

    def set_grid(self, grid: NDArray[np.uint32]) -> None:
        self.node.grid[:] = grid.tolist()

    def launch(self, gpu: Gpu) -> None:
        """On the stream, without a graph."""
        node = self.node
        gpu.driver.call("cuLaunchKernel", node.function, *node.grid, *node.block, 0, gpu.stream, node.parameters, None)


class LaunchGraph:
    """The launches of a step. Those between two barriers do not depend on each other and may run side by side."""

    def __init__(self, gpu: Gpu, kernels: Sequence[KernelLaunch], launches: Sequence[Launch], grids: Grids) -> None:
        self._gpu, self._kernels, self._grids = gpu, kernels, grids.copy()
        self._graph, self._executable = Handle(), Handle()
        gpu.driver.call("cuGraphCreate", byref(self._graph), 0)
        try:
            self._nodes = self._add_nodes(launches)
            gpu.driver.call("cuGraphInstantiateWithFlags", byref(self._executable), self._graph, 0)
        except BaseException:
            self.close()
            raise

    def _add_nodes(self, launches: Sequence[Launch]) -> list[Handle]:
        nodes: list[Handle] = []
        before: list[Handle] = []
        group: list[Handle] = []
        for kernel, launch, grid in zip(self._kernels, launches, self._grids, strict=True):
            if launch.barrier:
                before, group = group, []
            kernel.set_grid(grid)
            node, needed = Handle(), (Handle * len(before))(*before)
            self._gpu.driver.call(
                "cuGraphAddKernelNode", byref(node), self._graph, needed, len(before), byref(kernel.node)
            )
            nodes.append(node)
            group.append(node)
        return nodes

    def launch(self, grids: Grids) -> None:
        """Replay with these grids."""
        driver = self._gpu.driver
        if not np.array_equal(grids, self._grids):
            for number in np.flatnonzero((grids != self._grids).any(1)).tolist():
                kernel = self._kernels[number]
                kernel.set_grid(grids[number])
                driver.call("cuGraphExecKernelNodeSetParams", self._executable, self._nodes[number], byref(kernel.node))
                self._grids[number] = grids[number]
        driver.call("cuGraphLaunch", self._executable, self._gpu.stream)

    def close(self) -> None:
        for name, handle in (("cuGraphExecDestroy", self._executable), ("cuGraphDestroy", self._graph)):
            if handle.value is not None:
                self._gpu.discard(name, handle)


def make_kernels(
    functions: Mapping[str, Handle], threads: int, launches: Sequence[Launch], addresses: Sequence[int]
) -> list[KernelLaunch]:
    return [
        KernelLaunch(functions[launch.form.function], threads, [addresses[index] for index in launch.buffers])
        for launch in launches
    ]
