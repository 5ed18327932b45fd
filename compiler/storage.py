"""The plain arrays that a typed value is stored as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dsv3c.compiler import layouts
from dsv3c.compiler.ir import TensorType, dim_size
from dsv3c.compiler.ops.weight import activation_group, spec_of
from dsv3c.compiler.quant import NUMPY_DTYPES

ALIGNMENT = 64  # bytes: a cache line, and one AVX-512 register


class Component(NamedTuple):
    """One plain array of a stored value: its role, IR element type and shape."""

    role: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements."""
        size = 1
        for dim in self.shape:
            size *= dim
        return size

    @property
    def nbytes(self) -> int:
        return self.size * int(NUMPY_DTYPES[self.dtype].itemsize)


def components(type: TensorType, bounds: Mapping[str, int]) -> tuple[Component, ...]:
    """Storage of a value whose symbolic dims have their largest sizes.

    A packed weight is data, scale, zero as its layout says; a quantised activation q8-gA [..., K] is data i8 [..., Kp],
    scale f32 and sum i32 [..., Kp/A]; an unpacked integer weight is data u8 and scale; all else is one array.
    """
    shape = tuple(dim_size(dim, bounds) for dim in type.shape)
    group = activation_group(type)
    if group:
        *rows, k = shape
        groups = -(-k // group)
        parts = (("data", "i8", groups * group), ("scale", "f32", groups), ("sum", "i32", groups))
        return tuple(Component(role, dtype, (*rows, width)) for role, dtype, width in parts)
    if type.layout:
        *leading, n, k = shape
        packed = layouts.component_types(spec_of(type), tuple(leading), n, k)
        return tuple(Component(role, dtype, dims) for role, (dtype, dims) in packed.items())
    if type.dtype in NUMPY_DTYPES:
        return (Component("data", type.dtype, shape),)
    spec, (*rows, k) = spec_of(type), shape
    data = Component("data", "u8", (*rows, spec.padded_k(k)))
    return data, Component("scale", spec.scale_dtype, (*rows, spec.scale_groups(k)))


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to whole cache lines."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
