"""The frame of a GPU kernel: operands, workgroups, shared memory, and the PrimFunc around them.

Kernels are built with TVM's IR builder from plain Python: Python loops unroll, `T.serial` loops at run time. They are
written for any GPU: workgroups are one-dimensional, shared memory stays below 16 KiB, which every Vulkan device has,
and every operand is an array of 32-bit words. Narrower elements are unpacked in registers (see `words`), so no device
feature for 8 or 16-bit storage is needed. What uses subgroups has a form for devices without (see `subgroups`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from dsv3c.runtime.artifact.dispatches import ONE, Axis
from dsv3c.targets import tir as T
from dsv3c.targets.calls.operands import Operand, Rows, operand_bytes

Expr = Any
Buffer = Any
PrimFunc = Any
Buffers = dict[str, Buffer]

THREADS = 128  # of a workgroup: every Vulkan device runs as many
CACHE_WORDS = 1 << 30  # said of operands of any size
LOWEST = -3.0e38  # below every score; infinities do not survive the fast mathematics of some compilers
_WORD_TYPES = {"f32": "float32", "i32": "int32"}


@dataclass(frozen=True)
class Extent:
    """Workgroups along one axis: ceil(times * count / tile), at most `most`; count is 1, or the rows' T or R."""

    times: int = 1
    rows: Rows | None = None
    tile: int = 1
    most: int | None = None

    @property
    def maximum(self) -> int:
        groups = -(-self.times * (self.rows.maximum if self.rows else 1) // self.tile)
        return max(1, groups if self.most is None else min(groups, self.most))

    def axis(self) -> Axis:
        """As the table of dispatches has it, multipliers of rows taken in."""
        if self.rows is None:
            return Axis(self.times, ONE, self.tile, self.most)
        return Axis(self.times * self.rows.multiplier, self.rows.index, self.tile, self.most)


@dataclass(frozen=True)
class Variant:
    """One form of a kernel, for steps of up to `most_rows` rows (None: any number) on devices that have what it
    `requires`, by names that the runtime of the target knows."""

    grid: tuple[Extent, ...]
    build: Callable[[], PrimFunc]
    rows: Rows
    most_rows: int | None = None
    requires: frozenset[str] = frozenset()


def word_count(operand: Operand) -> int:
    """32-bit words that hold the operand."""
    return CACHE_WORDS if operand.size is None else -(-operand_bytes(operand) // 4)


def prim_func(
    operands: Sequence[Operand], grid: Sequence[Extent], body: Callable[[Buffers, Sequence[Expr], Expr], None]
) -> PrimFunc:
    """The kernel over `operands`, in order: `body(buffers by role, workgroup indices, thread)` emits its statements."""
    from tvm.script.ir_builder import IRBuilder

    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            T.func_attr({"tirx.noalias": True})
            buffers = {operand.role: _argument(operand) for operand in operands}
            with ExitStack() as stack:
                axes = zip("xyz", grid, strict=False)
                groups = [
                    stack.enter_context(T.launch_thread(f"blockIdx.{axis}", extent.maximum)) for axis, extent in axes
                ]
                body(buffers, groups, stack.enter_context(T.launch_thread("threadIdx.x", THREADS)))
    return builder.get()


def _argument(operand: Operand) -> Buffer:
    dtype = _WORD_TYPES.get(operand.dtype, "uint32")
    return T.arg(operand.role.replace(".", "_"), T.buffer((word_count(operand),), dtype))


def row_count(buffers: Buffers, rows: Rows) -> Expr:
    """M, as the control buffer says."""
    return T.bind(buffers["control"][rows.index] * rows.multiplier)


def store(buffer: Buffer, index: Expr, value: Expr) -> None:
    T.buffer_store(buffer, value, [index])


def local(size: int, dtype: str = "float32") -> Buffer:
    """Registers of one thread; indices are best known while building."""
    return T.alloc_buffer((size,), dtype, scope="local")


def shared(size: int, dtype: str = "float32") -> Buffer:
    return T.alloc_buffer((size,), dtype, scope="shared")


def barrier() -> None:
    """Shared memory written before is seen by all threads after. Every thread of the workgroup must come here."""
    T.evaluate(T.tvm_storage_sync("shared"))


def spread(count: Expr, thread: Expr, body: Callable[[Expr], None]) -> None:
    """body(i) for 0 <= i < count, the threads of the workgroup side by side."""
    if isinstance(count, int) and count <= THREADS:
        with T.If(thread < count), T.Then():
            body(thread)
        return
    with T.serial(0, T.bind(T.floordiv(count + (THREADS - 1), THREADS))) as step:
        i = T.bind(step * THREADS + thread)
        if isinstance(count, int) and count % THREADS == 0:
            body(i)
        else:
            with T.If(i < count), T.Then():
                body(i)


def add(a: Expr, b: Expr) -> Expr:
    return a + b


def f32(value: float) -> Expr:
    return T.float32(value)
