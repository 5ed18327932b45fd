"""CUDA C++ as TVM prints it, and what of that would be wrong or slow."""

from __future__ import annotations

import math
import struct
from typing import Any

import tvm_ffi
from tvm import tirx

from dsv3c.targets.gpu.source import Dialect, float32_bytes

Node = Any

_PREFIX = 'extern "C" __global__'


def _half_call(cast: Node) -> Node:
    """float32 of a float16's bits as a call: CUDA's own type `half` would take headers that NVRTC comes without."""
    value = cast.value
    if str(value.ty.dtype) != "float16":
        return cast
    return tirx.call_extern("float32", "dsv3c_f16", tirx.Cast("uint32", value.args[0].value))


def _one_operation(either: Node) -> Node:
    """(a & mask) | bits as one call: nvcc makes two instructions of it, since one holds only one of the constants."""
    masked = either.a
    constants = isinstance(masked, tirx.BitwiseAnd) and all(isinstance(x, tirx.IntImm) for x in (masked.b, either.b))
    if not constants or str(either.ty.dtype) != "uint32":
        return either
    return tirx.call_extern("uint32", "dsv3c_and_or", masked.a, masked.b, either.b)


def _rounded_float(number: Node) -> Node:
    """TVM prints all digits of the double that a constant was written as; nvcc warns of those that float32 drops."""
    if str(number.ty.dtype) != "float32":
        return number
    return tirx.FloatImm("float32", struct.unpack("<f", float32_bytes(float(number.value)))[0])


def _occupancy(body: Node) -> dict[str, int]:
    """Workgroups of 128 threads that must fit a multiprocessor of 64 Ki registers: four, or two where a thread has
    large arrays. So each has 128 or 255 registers and spills none; left to itself, ptxas takes fewer and spills."""
    numbers = 0

    def count(allocated: Node) -> None:
        nonlocal numbers
        if str(allocated.buffer.scope()) == "local":
            numbers += math.prod(int(extent) for extent in allocated.buffer.shape)

    tvm_ffi.structural_walk(body, [(tirx.AllocBuffer, count)])
    return {"tirx.launch_bounds_min_blocks_per_sm": 4 if numbers <= 64 else 2}


CUDA = Dialect(
    {"kind": "cuda", "arch": "sm_80"},
    ((tirx.Cast, _half_call), (tirx.FloatImm, _rounded_float), (tirx.BitwiseOr, _one_operation)),
    _occupancy,
    first=_PREFIX,
)
