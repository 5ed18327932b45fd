"""The Metal Shading Language as TVM prints it, and what of that would be wrong."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.ir import Call

from dsv3c.targets.gpu.kernels.subgroups import SHUFFLE_XOR
from dsv3c.targets.gpu.source import Dialect, float32_bytes

Node = Any


def _simd_shuffle(call: Node) -> Node:
    """The exchange within a subgroup as MSL has it."""
    if call.op.name != "tirx.call_extern" or str(call.args[0].value) != SHUFFLE_XOR:
        return call
    return tirx.call_extern(str(call.ty.dtype), "simd_shuffle_xor", call.args[1], tirx.Cast("uint16", call.args[2]))


def _exact_float(number: Node) -> Node:
    """TVM prints seven digits in MSL, float32 takes nine: what they do not tell is given by its bits."""
    value = float(number.value)
    if str(number.ty.dtype) != "float32" or float32_bytes(value) == float32_bytes(float(f"{value:e}")):
        return number
    return tirx.reinterpret("float32", tirx.IntImm("uint32", int.from_bytes(float32_bytes(value), "little")))


METAL = Dialect({"kind": "metal"}, ((tirx.FloatImm, _exact_float), (Call, _simd_shuffle)))
