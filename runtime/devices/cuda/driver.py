"""The CUDA driver API through ctypes: the functions that are used, with their types, and what their results mean.

Names, types and numbers are those of NVIDIA's cuda.h, version 12 or later.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_ulonglong, c_void_p
from typing import Any

from dsv3c.runtime.errors import DeviceApiMissing

API = "CUDA"
LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
OLDEST = 12000  # cuDriverGetVersion: graphs of the form used here, and the cubins of today's compilers

OUT_OF_MEMORY, NO_DEVICE, NO_BINARY = 2, 100, 209
# After these every further call of the process's context fails: CUDA_ERROR_DEINITIALIZED, DEVICE_UNAVAILABLE,
# ECC_UNCORRECTABLE, NVLINK_UNCORRECTABLE, CONTAINED, ILLEGAL_ADDRESS, LAUNCH_TIMEOUT, ASSERT, HARDWARE_STACK_ERROR,
# ILLEGAL_INSTRUCTION, MISALIGNED_ADDRESS, INVALID_ADDRESS_SPACE, INVALID_PC, LAUNCH_FAILED, UNKNOWN.
LOST = frozenset({4, 46, 214, 220, 226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 999})

# CUdevice_attribute
MAX_THREADS, MAX_GRID_X, MULTIPROCESSORS, MAJOR, MINOR = 1, 5, 16, 75, 76
DEFAULT_EVENT, NON_BLOCKING_STREAM = 0, 1

Address = c_uint64  # CUdeviceptr
Handle = c_void_p  # CUcontext, CUmodule, CUfunction, CUstream, CUevent, CUgraph, CUgraphNode, CUgraphExec


class KernelNode(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2"""

    _fields_ = (
        ("function", Handle),
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared_bytes", c_uint),
        ("parameters", POINTER(c_void_p)),
        ("extra", POINTER(c_void_p)),
        ("kernel", Handle),
        ("context", Handle),
    )


FUNCTIONS: Mapping[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(Handle), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (Handle,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(Address), c_size_t),
    "cuMemFree_v2": (Address,),
    "cuMemAllocHost_v2": (POINTER(c_void_p), c_size_t),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (Address, c_void_p, c_size_t, Handle),
    "cuMemcpyDtoHAsync_v2": (c_void_p, Address, c_size_t, Handle),
    "cuMemcpyDtoDAsync_v2": (Address, Address, c_size_t, Handle),
    "cuMemsetD8Async": (Address, c_ubyte, c_size_t, Handle),
    "cuStreamCreate": (POINTER(Handle), c_uint),
    "cuStreamSynchronize": (Handle,),
    "cuStreamDestroy_v2": (Handle,),
    "cuEventCreate": (POINTER(Handle), c_uint),
    "cuEventRecord": (Handle, Handle),
    "cuEventSynchronize": (Handle,),
    "cuEventElapsedTime": (POINTER(c_float), Handle, Handle),
    "cuEventDestroy_v2": (Handle,),
    "cuModuleLoadData": (POINTER(Handle), c_char_p),
    "cuModuleUnload": (Handle,),
    "cuModuleGetFunction": (POINTER(Handle), Handle, c_char_p),
    "cuLaunchKernel": (Handle, *[c_uint] * 7, Handle, POINTER(c_void_p), POINTER(c_void_p)),
    "cuGraphCreate": (POINTER(Handle), c_uint),
    "cuGraphAddKernelNode_v2": (POINTER(Handle), Handle, POINTER(Handle), c_size_t, POINTER(KernelNode)),
    "cuGraphInstantiateWithFlags": (POINTER(Handle), Handle, c_ulonglong),
    "cuGraphExecKernelNodeSetParams_v2": (Handle, Handle, POINTER(KernelNode)),
    "cuGraphLaunch": (Handle, Handle),
    "cuGraphExecDestroy": (Handle,),
    "cuGraphDestroy": (Handle,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
}


class CudaError(Exception):
    """A function of the driver failed. code: its CUresult."""

    def __init__(self, function: str, code: int, text: str) -> None:
        self.function, self.code = function, code
        super().__init__(f"{function}: {text}")


class Driver:
    """The loaded library. Each function is an attribute without its version, which raises CudaError.

    Raises DeviceApiMissing where there is no library, or where it is older than `OLDEST`.
    """

    def __init__(self) -> None:
        get = "install NVIDIA's driver, version 580 or later"
        try:
            library = ctypes.CDLL(LIBRARY)
            self._functions = {_plain(name): self._checked(library, name) for name in FUNCTIONS}
        except (OSError, AttributeError) as error:
            raise DeviceApiMissing(api=API, reason=str(error), get=get) from error
        version = c_int()
        self.call("cuDriverGetVersion", ctypes.byref(version))
        self.version = version.value
        if self.version < OLDEST:
            reason = f"the driver has version {_dotted(self.version)}, {_dotted(OLDEST)} is needed"
            raise DeviceApiMissing(api=API, reason=reason, get=get)

    def call(self, name: str, *arguments: Any) -> None:
        """Raises CudaError."""
        code = self._functions[name](*arguments)
        if code != 0:
            raise CudaError(name, code, self._text(code))

    def raw(self, name: str) -> Any:
        """The function itself, which returns its CUresult: for what runs every step."""
        return self._functions[name]

    @property
    def dotted_version(self) -> str:
        return _dotted(self.version)

    def _text(self, code: int) -> str:
        """CUDA_ERROR_…: what the driver says of it."""
        texts = []
        for name in ("cuGetErrorName", "cuGetErrorString"):
            text = c_char_p()
            known = self._functions[name](code, ctypes.byref(text)) == 0 and text.value is not None
            texts.append(text.value.decode(errors="replace") if known and text.value else f"error {code}")
        return ": ".join(dict.fromkeys(texts))

    @staticmethod
    def _checked(library: ctypes.CDLL, name: str) -> Any:
        function = getattr(library, name)
        function.argtypes, function.restype = FUNCTIONS[name], c_int
        return function


def _plain(name: str) -> str:
    return name.removesuffix("_v2")


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
