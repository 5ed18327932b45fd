"""The calls of an entry as C structures, which a routine of the kernel library makes one after the other.

A call from Python costs about as much as a small kernel, and a step has a hundred. Structures are those of DLPack
(dlpack.h: DLTensor) and TVM FFI (tvm/ffi/c_api.h: TVMFFIAny), as targets/cpu/calls.c and native/kernels.c have them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.devices.cpu.library import Library
from dsv3c.runtime.errors import KernelMissing

_CPU, _TENSOR = 1, 7  # kDLCPU, kTVMFFIDLTensorPtr
_KINDS = {"i": 0, "u": 1, "f": 2}  # of numpy: kDLInt, kDLUInt, kDLFloat

Run = Callable[[], int]


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Any(ctypes.Structure):
    _fields_ = (("type_index", ctypes.c_int32), ("padding", ctypes.c_uint32), ("pointer", ctypes.c_void_p))


class _Call(ctypes.Structure):
    _fields_ = (("function", ctypes.c_void_p), ("arguments", ctypes.POINTER(_Any)), ("count", ctypes.c_int32))


class Calls:
    """Makes calls of a library's kernels with flat arrays, which must stay where they are."""

    def __init__(self, library: Library, arrays: Many[NDArray[Any]]) -> None:
        self._library = library
        self._shapes = np.array([array.size for array in arrays], np.int64)
        self._one = ctypes.c_int64(1)  # the stride of every array
        self._tensors = (_Tensor * len(arrays))(*map(self._tensor, range(len(arrays)), arrays))
        self._arguments: list[Any] = []

    def entry(self, calls: Many[tuple[str, Many[int]]]) -> Run | None:
        """A function that makes these calls, kernels by name with arrays by number, and returns how many succeeded;
        None where the library has no routine for it. Raises KernelMissing."""
        try:
            routine = self._library.function("dsv3c_calls")
        except KernelMissing:
            return None
        routine.argtypes, routine.restype = [ctypes.POINTER(_Call), ctypes.c_int32], ctypes.c_int32
        made = (_Call * len(calls))(*[self._call(name, indices) for name, indices in calls])

        def run() -> int:
            done: int = routine(made, len(made))
            return done

        return run

    def _tensor(self, index: int, array: NDArray[Any]) -> _Tensor:
        shape = ctypes.cast(self._shapes.ctypes.data + 8 * index, ctypes.POINTER(ctypes.c_int64))
        kind, bits = _KINDS[array.dtype.kind], 8 * array.dtype.itemsize
        return _Tensor(array.ctypes.data, _CPU, 0, 1, kind, bits, 1, shape, ctypes.pointer(self._one), 0)

    def _call(self, name: str, indices: Many[int]) -> _Call:
        pointers = [ctypes.addressof(self._tensors) + ctypes.sizeof(_Tensor) * index for index in indices]
        arguments = (_Any * len(indices))(*[_Any(_TENSOR, 0, pointer) for pointer in pointers])
        self._arguments.append(arguments)
        return _Call(self._library.address(name), arguments, len(indices))
