"""What an operation is: its typing rule, its meaning in numpy, and the phases in which it is legal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dsv3c.compiler.core.ir import Dim, TensorType, dim_product
from dsv3c.compiler.errors import TypeRuleError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Op:
    """One row of the op table.

    `infer(*types, **attrs)` gives the result's type or raises OperandError; `evaluate(*arrays, **attrs)` gives the
    result in numpy and is the definition that passes and targets are tested against.

    role: "leaf"; "primitive" (what the tracer records); "fused" (made by passes, one kernel call each);
    "view" (a reading of another value's memory, no kernel); "weight" (done at compile time on weights only).
    in_place: the result is the first operand's memory, updated.
    """

    name: str
    infer: Callable[..., TensorType]
    evaluate: Callable[..., Any]
    role: str = "primitive"
    in_place: bool = False


class OperandError(Exception):
    """The reason why a typing rule refuses its operands; `apply` adds which operation it was."""


def op_table(*ops: Op) -> dict[str, Op]:
    return {op.name: op for op in ops}


def require(condition: bool, reason: str) -> None:
    if not condition:
        raise OperandError(reason)


def infer_type(op: Op, types: tuple[TensorType, ...], attrs: Mapping[str, Any]) -> TensorType:
    """Apply the typing rule. Raises TypeRuleError with the operation and its operand types."""
    try:
        return op.infer(*types, **attrs)
    except (OperandError, TypeError, ValueError, IndexError) as error:
        raise TypeRuleError(op=op.name, operands=", ".join(map(str, types)), reason=str(error)) from error


def broadcast(*shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """numpy's broadcasting on symbolic shapes."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    result: list[Dim] = []
    for dims in zip(*padded, strict=True):
        wide = sorted({str(dim) for dim in dims if dim != 1})
        require(len(wide) <= 1, f"dims {' and '.join(wide)} do not broadcast")
        result.append(next((dim for dim in dims if dim != 1), 1))
    return tuple(result)


def element_count(shape: tuple[Dim, ...]) -> Dim:
    return dim_product(*shape)


def concrete(shape: tuple[Dim, ...]) -> tuple[int, ...]:
    """The shape for numpy's reshape: its one symbolic dim becomes -1."""
    return tuple(-1 if isinstance(dim, str) else dim for dim in shape)


def float32(array: Array) -> Array:
    return np.asarray(array, dtype=np.float32)
