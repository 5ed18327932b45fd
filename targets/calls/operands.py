"""Operands of kernels: their roles, types and sizes, and where rows lie in them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.compiler.formats.rows16 import component_types
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.runtime.artifact.plan import CONTROL_SIZE

Expr = Any


class Operand(NamedTuple):
    """One argument of a kernel: its role ("x", "w.scale", "scratch", …), IR dtype, number of elements (None: any)."""

    role: str
    dtype: str
    size: int | None


CONTROL = Operand("control", "i32", CONTROL_SIZE)


def operand_bytes(operand: Operand) -> int:
    return int(operand.size or 0) * int(NUMPY_DTYPES[operand.dtype].itemsize)


@dataclass(frozen=True)
class Rows:
    """M = multiplier * control[index], never more than multiplier * bound."""

    bound: int
    index: int = 0
    multiplier: int = 1

    @property
    def maximum(self) -> int:
        return self.bound * self.multiplier


@dataclass(frozen=True)
class View:
    """Element (row, head, j) of an operand lies at row*row_stride + head*head_stride + offset + j."""

    row_stride: int
    offset: int = 0
    head_stride: int = 0

    def start(self, row: Expr, head: Expr = 0) -> Expr:
        return row * self.row_stride + head * self.head_stride + self.offset


def weight_operands(role: str, weight: WeightFormat, leading: tuple[int, ...], n: int, k: int) -> list[Operand]:
    """The components of a packed weight [*leading, n, k]."""
    types = component_types(weight, leading, n, k)
    return [Operand(f"{role}.{name}", dtype, prod(shape)) for name, (dtype, shape) in types.items()]


def view_of(view: View | None, heads: int, k: int) -> View:
    """The view that a spec names, or that of contiguous rows."""
    return view or View(heads * k, head_stride=k)
