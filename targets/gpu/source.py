"""Kernels as source text, by TVM's code generators for CUDA C++ and the Metal Shading Language.

Kernels come with flat buffers and their own barriers, so TVM's default passes are left out: its ThreadSync refuses
barriers inside conditions, its simplifier puts the value of every `bind` wherever the name stands. A device function is
made of the PrimFunc directly, which also keeps the operands in their order; SplitHostDevice would sort them by name.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import Call, CallingConv, PointerType, PrimType

from dsv3c.targets.gpu.kernels.subgroups import SHUFFLE_XOR

PrimFunc = Any
Node = Any
Rewrites = tuple[tuple[type, Callable[[Any], Any]], ...]

_PREFIX = 'extern "C" __global__'


@dataclass(frozen=True, eq=False)
class Dialect:
    """A language that TVM prints. target: TVM's description of it. rewrites: by type of node, what the printer would
    get wrong or write badly. attributes: of a function with this body. first: where the kernels begin in the printed
    text, what stands before is left out."""

    target: Mapping[str, Any]
    rewrites: Rewrites = ()
    attributes: Callable[[Node], Mapping[str, Any]] = lambda body: {}
    first: str = ""


def source(functions: Mapping[str, PrimFunc], dialect: Dialect) -> str:
    """The text of all kernels, each under its name; operand i is parameter i.

    CUDA: `extern "C" __global__` functions with __launch_bounds__ and __restrict__, without a prelude; they use the
    types uint and ushort and functions dsv3c_*, see targets/cuda/prelude.h. Metal: kernels with
    operand i at buffer(i), complete.
    """
    target = tvm.target.Target(dict(dialect.target))
    module = tvm.IRModule({name: _device_function(name, f, target, dialect) for name, f in functions.items()})
    module = tirx.transform.LowerIntrin()(module)
    text: str = tvm.get_global_func(f"target.build.{target.kind.name}")(module, target).inspect_source()
    return text[text.index(dialect.first) :]


def _device_function(name: str, function: PrimFunc, target: Any, dialect: Dialect) -> PrimFunc:
    """The kernel as TVM's code generators want it: pointers as parameters, each declared as the operand's buffer."""
    module = tvm.IRModule({"main": function.with_attr("global_symbol", name)})
    opaque = s_tir.transform.LowerOpaqueBlock()(module)["main"]
    body = tvm_ffi.structural_map(opaque.body, [*_INDEX_REWRITES, *dialect.rewrites])
    pointers = [tirx.Var(buffer.name, PointerType(PrimType(str(buffer.dtype)), "global")) for buffer in opaque.params]
    declared = [tirx.DeclBuffer(buffer, data=at) for buffer, at in zip(opaque.params, pointers, strict=True)]
    return tirx.PrimFunc(pointers, tirx.SeqStmt([*declared, body])).with_attr(
        {
            "global_symbol": name,
            "target": target,
            "calling_conv": CallingConv.DEVICE_KERNEL_LAUNCH,
            "tirx.is_global_func": True,
            "tirx.kernel_launch_params": thread_tags(body),
            "tirx.noalias": True,
            **dialect.attributes(body),
        }
    )


def thread_tags(body: Node) -> list[str]:
    """blockIdx.x, …, threadIdx.x: the axes of the launch."""
    tags = []

    def visit(attribute: Node) -> None:
        if attribute.attr_key == "thread_extent":
            tags.append(str(attribute.node.thread_tag))

    tvm_ffi.structural_walk(body, [(tirx.AttrStmt, visit)], order="pre")
    return tags


def _truncated(floor: Node) -> Node:
    """Indices are never negative, so floor division is the devices' own; by powers of two TVM writes shifts."""
    divisor = getattr(floor.b, "value", 0)
    if isinstance(divisor, int) and divisor > 0 and divisor & (divisor - 1) == 0:
        return floor
    return tirx.Div(floor.a, floor.b) if isinstance(floor, tirx.FloorDiv) else tirx.Mod(floor.a, floor.b)


_INDEX_REWRITES: Rewrites = (((tirx.FloorDiv, tirx.FloorMod), _truncated),)  # type: ignore[assignment]


def _half_call(cast: Node) -> Node:
    """float32 of a float16's bits as a call: CUDA's own type `half` would take headers that NVRTC comes without."""
    value = cast.value
    if str(value.ty.dtype) != "float16":
        return cast
    return tirx.call_extern("float32", "dsv3c_f16", tirx.Cast("uint32", value.args[0].value))


def _simd_shuffle(call: Node) -> Node:
    """The exchange within a subgroup as MSL has it."""
    if call.op.name != "tirx.call_extern" or str(call.args[0].value) != SHUFFLE_XOR:
        return call
    return tirx.call_extern(str(call.ty.dtype), "simd_shuffle_xor", call.args[1], tirx.Cast("uint16", call.args[2]))


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
    return tirx.FloatImm("float32", struct.unpack("<f", _float32(float(number.value)))[0])


def _exact_float(number: Node) -> Node:
    """TVM prints seven digits in MSL, float32 takes nine: what they do not tell is given by its bits."""
    value = float(number.value)
    if str(number.ty.dtype) != "float32" or _float32(value) == _float32(float(f"{value:e}")):
        return number
    return tirx.reinterpret("float32", tirx.IntImm("uint32", int.from_bytes(_float32(value), "little")))


def _float32(value: float) -> bytes:
    return struct.pack("<f", value)


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
METAL = Dialect({"kind": "metal"}, ((tirx.FloatImm, _exact_float), (Call, _simd_shuffle)))
