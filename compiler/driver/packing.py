"""Weights that a kernel rounds and packs in one go, from the rows of the checkpoint as they are mapped.

What is made is what numpy makes, `rows16.pack(quantize(w, format), format)`, to the bit, several times as fast. numpy
stays what runs where there is no kernel: for other formats and layouts, on a CPU below every level of ours, for models
so small that compiling a kernel would take longer than it saves, and for weights that something is wrong with, whose
errors it knows how to tell.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Value, topological_order
from dsv3c.compiler.core.ops.table import Array
from dsv3c.compiler.core.ops.weight import Packed, format_of
from dsv3c.compiler.driver.machine import levels
from dsv3c.compiler.formats import rows16
from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.compiler.formats.quant import check_range
from dsv3c.compiler.formats.rounding import matrix_extremes
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.runtime.devices.cpu.features import cpu_flags

# Reads one tensor, or one expert of a stacked tensor when an index is given.
Read = Callable[[str, int | None], Array]
Given = Callable[[Value], Array]
Kernel = Callable[..., None]  # as targets.cpu.rounding.build says, of addresses

WORTH = 1 << 26  # weights of a format from which on compiling its kernel, 0.3 s, is less than numpy takes longer
_CALL = 1 << 24  # weights of a call at most: kernels count in 32 bits
_ALIGNMENT = 64
_MOVING = frozenset(("param", "reshape", "transpose", "slice", "concat"))  # what leaves numbers as they are stored
_ELEMENTS = {NUMPY_DTYPES[name]: name for name in ("f32", "f16", "bf16")}


@dataclass
class Kernels:
    """weights: how many there are to round, by format. stored: reads tensors as numbers of the type that the checkpoint
    has, perhaps not finite; None where what is read is not what is stored. in_codes: tensors that are read in codes.

    Threads may share it. What `pack` gives lies in memory of the thread, which the next call fills anew.
    """

    weights: Mapping[WeightFormat, int]
    stored: Read | None = None
    in_codes: frozenset[str] = frozenset()
    _built: dict[tuple[WeightFormat, str], Kernel | None] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _own: threading.local = field(default_factory=threading.local)

    @classmethod
    def of(
        cls, recipes: Iterable[Value], stored: Read | None = None, in_codes: frozenset[str] = frozenset()
    ) -> Kernels:
        """For these recipes together."""
        weights: dict[WeightFormat, int] = {}
        for recipe in recipes:
            if _is_packed(recipe):
                format = format_of(recipe.type)
                weights[format] = weights.get(format, 0) + math.prod(map(int, recipe.shape))
        return cls(weights, stored, in_codes)

    def takes(self, recipe: Value) -> bool:
        """Whether a kernel is compiled for recipes like this one."""
        from dsv3c.targets.cpu import rounding

        if not _is_packed(recipe):
            return False
        format = format_of(recipe.type)
        return rounding.takes(format) and self.weights.get(format, 0) >= WORTH

    def pack(self, recipe: Value, given: Given) -> Packed | None:
        """What `recipe` evaluates to; None where that is numpy's to say. given: as `ops.evaluate` wants it.

        Raises OutOfRange where a code with its scale would be infinity.
        """
        if not self.takes(recipe):
            return None
        weight, format = recipe.inputs[0].inputs[0], format_of(recipe.type)
        values = topological_order([weight])
        if any(value.op == "param" and value.attrs["name"] in self.in_codes for value in values):
            return None
        if self.stored is not None and all(value.op in _MOVING for value in values):
            given = reading(self.stored)
        *leading, n, k = map(int, recipe.shape)
        packed = Packed(self._memory(format, tuple(leading), n, k), format, n, k, rows16.NAME)
        block = 0
        for part in _parts(weight, format):
            array = ops.evaluate([part], given)[0]
            kernel = self._kernel(format, array.dtype)
            if kernel is None or (format.grouping.per_tensor and n % rows16.LANES):
                return None
            for matrix in array.reshape(-1, *array.shape[-2:]):
                if not _round(kernel, matrix, format, _blocks(packed.components, block)):
                    return None
                block += rows16.padded_rows(len(matrix)) // rows16.LANES
        check_range(packed.components["scale"], format)
        return packed

    def _kernel(self, format: WeightFormat, dtype: np.dtype[Any]) -> Kernel | None:
        element = _ELEMENTS.get(dtype)
        if element is None:
            return None
        with self._lock:
            if (format, element) not in self._built:
                self._built[format, element] = compiled(format, element)
        return self._built[format, element]

    def _memory(self, format: WeightFormat, leading: tuple[int, ...], n: int, k: int) -> dict[str, Array]:
        """The components of a weight, in the memory of this thread: fresh pages would take as long as the kernel."""
        components = {}
        for role, (dtype, shape) in rows16.component_types(format, leading, n, k).items():
            nbytes = math.prod(shape) * NUMPY_DTYPES[dtype].itemsize
            held = getattr(self._own, role, None)
            if held is None or len(held) < nbytes:
                held = _aligned(nbytes)
                setattr(self._own, role, held)
            components[role] = held[:nbytes].view(NUMPY_DTYPES[dtype]).reshape(shape)
        return components


def reading(read: Read) -> Given:
    """Gives the leaves of recipes."""

    def given(leaf: Value) -> Array:
        index = leaf.attrs.get("expert")
        return read(str(leaf.attrs["name"]), None if index is None else int(index))  # type: ignore[arg-type]

    return given


def compiled(format: WeightFormat, element: str) -> Kernel | None:
    """The kernel of a format for weights of an element type, for this machine; None where there is none."""
    from dsv3c.targets.cpu import library, rounding

    level = next((level for level in levels(cpu_flags()) if level.matrix is None), None)
    if level is None:
        return None
    module = library.module_of({"main": rounding.build(format, element)})
    return partial(_call, library.compile_module(module, replace(level, platform=None))["main"])


def _call(function: Any, *operands: Any) -> None:
    """Arrays go in as addresses: what is mapped from a checkpoint may not be written, and DLPack has no word for that.
    The call lets other threads run."""
    function(*(x if isinstance(x, int) else ctypes.c_void_p(None if x is None else x.ctypes.data) for x in operands))


def _round(kernel: Kernel, matrix: Array, format: WeightFormat, out: dict[str, Array]) -> bool:
    """Fill the first blocks of `out` from matrix [N, K]; False for one that is not finite."""
    from dsv3c.targets.cpu.rounding import INFINITY

    n, k = matrix.shape
    rows = _whole(matrix, rows16.padded_rows(n), format.padded_k(k))
    extremes = None
    if format.grouping.per_tensor:
        extremes = np.array([each[0, 0] for each in matrix_extremes(matrix, n)], np.float32)
    largest = _aligned(rows16.LANES * 4).view(np.int32)
    largest[:] = 0
    step = max(1, _CALL // (rows16.LANES * rows.shape[1]))
    blocks = rows.shape[0] // rows16.LANES
    for first in range(0, blocks, step):
        count, own = min(step, blocks - first), _blocks(out, first)
        part = rows[first * rows16.LANES :]
        kernel(part, own["data"], own["scale"], own.get("zero"), extremes, largest, count, rows.shape[1])
    if n % rows16.LANES:
        out["scale"][blocks - 1, :, n % rows16.LANES :] = 0
    return int(largest.max()) < INFINITY


def _whole(matrix: Array, rows: int, columns: int) -> Array:
    """The matrix as the kernel takes it: in one piece, on four bytes, with zeros up to whole blocks and groups."""
    if matrix.shape == (rows, columns) and matrix.flags.c_contiguous and matrix.ctypes.data % 4 == 0:
        return matrix
    out = np.zeros((rows, columns), matrix.dtype)
    out[: matrix.shape[0], : matrix.shape[1]] = matrix
    return out


def _parts(weight: Value, format: WeightFormat) -> tuple[Value, ...]:
    """What stands behind one another in the packed weight, to be read where it lies."""
    if weight.op != "concat" or weight.attrs["axis"] != 0:
        return (weight,)
    apart = len(weight.shape) > 2
    if not apart and format.grouping.per_tensor:
        return (weight,)
    whole = all(int(source.shape[0]) % rows16.LANES == 0 for source in weight.inputs)
    return weight.inputs if apart or whole else (weight,)


def _is_packed(recipe: Value) -> bool:
    """Whether a weight of codes is rounded and then packed to rows16."""
    if recipe.op != "pack" or recipe.attrs["layout"] != rows16.NAME or recipe.inputs[0].op != "quantize":
        return False
    return format_of(recipe.type).has_codes


def _blocks(components: Mapping[str, Array], first: int) -> dict[str, Array]:
    """The blocks of sixteen rows from `first` on, of all matrices."""
    shapes = {role: array.shape[array.ndim - _DIMS[role] :] for role, array in components.items()}
    return {role: array.reshape(-1, *shapes[role])[first:] for role, array in components.items()}


_DIMS = {"data": 3, "scale": 2, "zero": 2}  # of a block


def _aligned(nbytes: int) -> Array:
    """Bytes on a boundary that any vector wants."""
    whole = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -whole.ctypes.data % _ALIGNMENT
    return whole[start : start + nbytes]
