"""Kernels as source text, by TVM's code generators for CUDA C++ and the Metal Shading Language.

Kernels come with flat buffers and their own barriers, so TVM's default passes are left out: its ThreadSync refuses
barriers inside conditions, its simplifier puts the value of every `bind` wherever the name stands. A device function is
made of the PrimFunc directly, which also keeps the operands in their order; SplitHostDevice would sort them by name.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import CallingConv, PointerType, PrimType

PrimFunc = Any
Node = Any
Rewrites = tuple[tuple[type, Callable[[Any], Any]], ...]


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
    types uint and ushort and functions dsv3c_*, see targets/cuda/prelude.h. Metal: kernels with operand i at buffer(i),
    complete.
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


def float32_bytes(value: float) -> bytes:
    """Little endian; raises OverflowError for what float32 does not hold."""
    return struct.pack("<f", value)
