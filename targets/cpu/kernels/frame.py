"""The frame of a kernel: its operands, its loops, and the PrimFunc around them.

Kernels are built with TVM's IR builder from plain Python: Python loops unroll, `T.serial` and `items` loop at run time.
Every operand is a flat buffer. Local buffers stay below 1024 bytes, or TVM would move them from registers to the heap;
`stack` is for larger ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets import tir as T
from dsv3c.targets.calls.operands import Operand as Operand
from dsv3c.targets.calls.operands import Rows, View

Expr = Any
Buffer = Any
PrimFunc = Any

ALIGNMENT = 64  # bytes, of every buffer a kernel gets
HEAP = 1024  # bytes from which on TVM asks its runtime for memory
PARALLEL_WORK = 32768  # multiply-adds (or elements) below which waking a thread costs more than it saves
TVM_DTYPES = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "uint16",
    "i32": "int32",
    "i64": "int64",
    "i8": "int8",
    "u8": "uint8",
    "u32": "uint32",
}


def activation_operands(role: str, weight: WeightFormat, rows: int, k: int, view: View, bound: int) -> list[Operand]:
    """What `rows` activation rows of K elements feed into a product with `weight`: float32, or q8 of its group."""
    if not weight.integer_products:
        return [Operand(role, "f32", bound * view.row_stride)]
    padded = weight.padded_k(k)
    groups = padded // weight.grouping.activations
    return [
        Operand(f"{role}.data", "i8", rows * padded),
        Operand(f"{role}.scale", "f32", rows * groups),
        Operand(f"{role}.sum", "i32", rows * groups),
    ]


def prim_func(operands: Sequence[Operand], body: Callable[[dict[str, Buffer]], None], llvm: str = "") -> PrimFunc:
    """The function over `operands`, in order, whose statements `body` emits given the buffers by role.

    llvm: LLVM IR of functions that the body calls, without comments. It goes in as one line: TVMScript does not read
    back a string with line breaks.
    """
    llvm = " ".join(llvm.split())

    from tvm.script.ir_builder import IRBuilder

    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            T.func_attr({"tirx.noalias": True})
            buffers = {operand.role: _argument(operand) for operand in operands}
            with T.attr(0, "pragma_import_llvm", llvm) if llvm else nullcontext():
                body(buffers)
    return builder.get()


def _argument(operand: Operand) -> Buffer:
    name, dtype = operand.role.replace(".", "_"), TVM_DTYPES[operand.dtype]
    if operand.size is None:
        return T.match_buffer(T.arg(name, T.handle()), (T.int64(),), dtype, align=ALIGNMENT)
    return T.arg(name, T.buffer((operand.size,), dtype, align=ALIGNMENT))


def loop(count: Expr, parallel: bool) -> Any:
    """A loop frame over `count`, on the thread pool or not."""
    return T.parallel(0, count) if parallel else T.serial(0, count)


def rows_loop(control: Buffer, rows: Rows, work_per_row: int, body: Callable[[Expr], None]) -> None:
    """body(row) for each of the M rows, in parallel when there is enough work in them."""
    count = T.bind(control[rows.index] * rows.multiplier)
    worth = -(-PARALLEL_WORK // max(1, work_per_row))
    if rows.maximum < max(2, worth):
        with T.serial(0, count) as row:
            body(row)
        return
    with T.If(count >= max(2, worth)):
        with T.Then():
            with T.parallel(0, count) as row:
                body(row)
        with T.Else():
            with T.serial(0, count) as row:
                body(row)


def tiles(count: Expr, tile: int, body: Callable[[list[Expr]], None]) -> None:
    """body(indices) over 0..count: `tile` at a time, a rest of up to half of that in one go of half a tile.

    Indices past the end are clamped to the last one. A clamped index repeats work of the same task, so bodies must
    store, not accumulate, into memory.
    """
    half = tile // 2

    def at(start: Expr, width: int) -> None:
        body([T.bind(T.min(start + i, count - 1)) for i in range(width)])

    whole = T.bind(T.floordiv(count + (tile - 1 - half), tile))
    with T.serial(0, whole) as step:
        at(T.bind(step * tile), tile)
    rest = T.bind(count - whole * tile)
    if half > 1:
        with T.If(rest > 1):
            with T.Then():
                at(T.bind(whole * tile), half)
    with T.If(rest == 1):
        with T.Then():
            body([T.bind(count - 1)])


def local(element: str, size: int) -> Buffer:
    """A buffer in registers or on the stack."""
    size_bytes = size * np.dtype(TVM_DTYPES[element]).itemsize
    assert size_bytes < HEAP, f"{size_bytes} bytes would be on TVM's heap, which a device does not have: see `stack`"
    return T.alloc_buffer((size,), TVM_DTYPES[element], scope="global")


def stack(element: str, lanes: int, size: int) -> Buffer:
    """`size` vectors of `lanes` elements on the stack, aligned to their length: TVM aligns a buffer of scalars to 16.

    Of any size, as TVM is told not to move it to the heap.
    """
    annotations = {"disable_lower_builtin": True}
    return T.alloc_buffer((size,), f"{TVM_DTYPES[element]}x{lanes}", scope="global", annotations=annotations)


def settled(*values: Expr) -> list[Expr]:
    """Integers that TVM's simplifier takes as they are: it looks through bindings, and offsets in which it finds all
    that these come from cost it seconds a kernel, or minutes."""
    memory = local("i32", len(values))
    for i, value in enumerate(values):
        T.buffer_store(memory, value, [i])
    return [T.bind(memory[i]) for i in range(len(values))]
