"""The plain arrays that a typed value is stored as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Dim, TensorType, Value, dim_size
from dsv3c.compiler.core.ops.weight import activation_group, format_of
from dsv3c.compiler.errors import NotAViewError
from dsv3c.compiler.formats import coded_rows, rows
from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.compiler.formats.grouping import padded_k
from dsv3c.compiler.formats.layouts import LAYOUTS

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

    A packed weight is data, scale, zero as its layout says, and an unpacked one of codes (an embedding) as formats.rows
    says; a quantised activation q8-gA [..., K] is data i8 [..., Kp], scale f32 and sum i32 [..., Kp/A]; all else is one
    array, of bytes where it has coded rows.
    """
    type = plain(type)
    shape = tuple(dim_size(dim, bounds) for dim in type.shape)
    group = activation_group(type)
    if group:
        *leading, k = shape
        padded = padded_k(k, group)
        groups = padded // group
        parts = (("data", "i8", padded), ("scale", "f32", groups), ("sum", "i32", groups))
        return tuple(Component(role, dtype, (*leading, width)) for role, dtype, width in parts)
    if type.layout:
        *leading, n, k = shape
        packed = LAYOUTS[type.layout].component_types(format_of(type), tuple(leading), n, k)
        return tuple(Component(role, dtype, dims) for role, (dtype, dims) in packed.items())
    if type.dtype in NUMPY_DTYPES:
        return (Component("data", type.dtype, shape),)
    *leading, n, k = shape
    unpacked = rows.component_types(format_of(type), tuple(leading), n, k)
    return tuple(Component(role, dtype, dims) for role, (dtype, dims) in unpacked.items())


def plain(type: TensorType) -> TensorType:
    """The type itself, or of coded rows [N, L] the u8 [N, bytes of a row] that they lie in memory as."""
    if coded_rows.CodedRows.of_type(type.dtype) is None:
        return type
    count, width = type.shape
    return TensorType("u8", (count, coded_rows.row_bytes(dim_size(width, {}))))


def tensor_name(recipe: str, component: Component) -> str:
    """Name in the file: the recipe's own for its data, with the role behind it for the rest."""
    return recipe if component.role == "data" else f"{recipe}.{component.role}"


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to whole cache lines."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def memory_owner(value: Value) -> Value:
    """The value whose memory `value` is: itself, or for views and in-place results that of the first operand."""
    while ops.lookup(value.op).role == "view" or ops.lookup(value.op).in_place:
        value = value.inputs[0]
    return value


class Strided(NamedTuple):
    """A view of its owner's flat memory: (i, j, k) is at offset + i*strides[0] + j*strides[1] + k*strides[2]."""

    offset: int
    strides: tuple[int, ...]


def strided(value: Value) -> Strided:
    """Where the elements of `value` lie in the memory of its owner; the last axis is contiguous.

    Raises NotAViewError for a reshape that its operand's strides cannot express, and for slices with a step.
    """
    if ops.lookup(value.op).in_place:
        return strided(value.inputs[0])
    if value.op == "slice":
        base, axis = strided(value.inputs[0]), value.attrs["axis"]
        start, step = value.attrs["start"], value.attrs.get("step", 1)
        assert isinstance(axis, int) and isinstance(start, int)
        if step != 1:
            raise NotAViewError(value=value)
        return Strided(base.offset + start * base.strides[axis], base.strides)
    if value.op == "reshape":
        return _reshaped(value, strided(value.inputs[0]))
    return Strided(0, dense_strides(value.shape))


def dense_strides(shape: tuple[Dim, ...]) -> tuple[int, ...]:
    """Of elements that lie one behind the other. Raises NotAViewError where a dim behind the first is symbolic."""
    strides = [1]
    for dim in reversed(shape[1:]):
        if not isinstance(dim, int):
            raise NotAViewError(value=shape)
        strides.append(strides[-1] * dim)
    return tuple(reversed(strides))


def _reshaped(value: Value, base: Strided) -> Strided:
    """Split or join the axes behind the first, whose dim stays: rows keep their stride, their inside is contiguous."""
    source = value.inputs[0].shape
    inner = dense_strides(value.shape)
    if source[0] != value.shape[0] or base.strides[1:] != dense_strides(source)[1:]:
        raise NotAViewError(value=value)
    return Strided(base.offset, (base.strides[0], *inner[1:]))
