"""Which kernel an operation becomes: from an IR value to a kernel spec and the values in its operands' roles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dsv3c.compiler.ir import Dim, Value
from dsv3c.compiler.ops.weight import activation_group, spec_of
from dsv3c.compiler.storage import strided
from dsv3c.targets.cpu.kernels.elementwise import Add, Concat, Swiglu
from dsv3c.targets.cpu.kernels.embedding import Take
from dsv3c.targets.cpu.kernels.frame import Rows, View
from dsv3c.targets.cpu.kernels.linear import Linear
from dsv3c.targets.cpu.kernels.norm import RmsNorm
from dsv3c.targets.cpu.kernels.quantize import QuantizeRows
from dsv3c.targets.cpu.kernels.rope import Rope, RopeTable

Bounds = Mapping[str, int]
CONTROL_INDEX = {"T": 0, "R": 1}  # where the control buffer holds the size of a symbolic dim


@dataclass(frozen=True)
class KernelCall:
    """spec: names the kernel (see kernels.operands). roles: the value of each operand role; components of a quantised
    value share its role ("w" stands for w.data, w.scale, w.zero)."""

    spec: Any
    roles: Mapping[str, Value]


def lower(value: Value, bounds: Bounds) -> KernelCall:
    """The kernel call for a value of phase "kernel"."""
    return _RULES[value.op](value, bounds)


def rows_of(dim: Dim, bounds: Bounds) -> Rows:
    """Row count c*T or c*R as the kernels read it from the control buffer."""
    coefficient, _, name = str(dim).rpartition("*")
    return Rows(bounds[name], CONTROL_INDEX[name], int(coefficient or 1))


def view_of(value: Value) -> View:
    """Where the rows (and heads) of an activation lie in its owner's memory."""
    at = strided(value)
    return View(at.strides[0], at.offset, at.strides[1] if len(at.strides) == 3 else 0)


def _int(x: Any) -> int:
    assert isinstance(x, int)
    return x


def _take(value: Value, bounds: Bounds) -> KernelCall:
    table, ids = value.inputs
    height = table.shape[0]
    v = height if isinstance(height, int) else bounds[height]
    element = "i8" if table.dtype == "int8" else table.dtype
    spec = Take(rows_of(ids.shape[0], bounds), v, _int(table.shape[1]), element)
    return KernelCall(spec, {"table": table, "ids": ids, "y": value})


def _rms_norm(value: Value, bounds: Bounds) -> KernelCall:
    x, weight = value.inputs
    eps = value.attrs["eps"]
    assert isinstance(eps, float)
    spec = RmsNorm(rows_of(x.shape[0], bounds), _int(x.shape[-1]), eps, view_of(x))
    return KernelCall(spec, {"x": x, "weight": weight, "y": value})


def _quantize_rows(value: Value, bounds: Bounds) -> KernelCall:
    (x,) = value.inputs
    heads = _int(x.shape[1]) if len(x.shape) == 3 else 1
    spec = QuantizeRows(rows_of(x.shape[0], bounds), _int(x.shape[-1]), activation_group(value.type), heads, view_of(x))
    return KernelCall(spec, {"x": x, "y": value})


def _linear(value: Value, bounds: Bounds) -> KernelCall:
    x, weight = value.inputs
    heads = _int(weight.shape[0]) if len(weight.shape) == 3 else 1
    view = None if activation_group(x.type) else view_of(x)
    n, k = _int(weight.shape[-2]), _int(weight.shape[-1])
    spec = Linear(rows_of(x.shape[0], bounds), n, k, spec_of(weight.type), heads, view)
    return KernelCall(spec, {"x": x, "w": weight, "y": value})


def _rope_table(value: Value, bounds: Bounds) -> KernelCall:
    positions, inv_freq = value.inputs
    scale = value.attrs["scale"]
    assert isinstance(scale, float)
    spec = RopeTable(rows_of(positions.shape[0], bounds), _int(value.shape[-1]), scale)
    return KernelCall(spec, {"positions": positions, "inv_freq": inv_freq, "y": value})


def _rope(value: Value, bounds: Bounds) -> KernelCall:
    x, table = value.inputs
    interleave = bool(value.attrs["interleave"])
    spec = Rope(rows_of(x.shape[0], bounds), _int(x.shape[1]), _int(x.shape[2]), interleave, view_of(x))
    return KernelCall(spec, {"x": x, "table": table, "y": value})


def _add(value: Value, bounds: Bounds) -> KernelCall:
    a, b = value.inputs
    spec = Add(rows_of(value.shape[0], bounds), _int(value.shape[-1]))
    return KernelCall(spec, {"a": a, "b": b, "y": value})


def _concat(value: Value, bounds: Bounds) -> KernelCall:
    a, b = value.inputs
    spec = Concat(rows_of(value.shape[0], bounds), _int(a.shape[-1]), _int(b.shape[-1]))
    return KernelCall(spec, {"a": a, "b": b, "y": value})


def _swiglu(value: Value, bounds: Bounds) -> KernelCall:
    spec = Swiglu(rows_of(value.shape[0], bounds), _int(value.shape[-1]))
    return KernelCall(spec, {"x": value.inputs[0], "y": value})


_RULES: Mapping[str, Callable[[Value, Bounds], KernelCall]] = {
    "take": _take,
    "rms_norm": _rms_norm,
    "quantize_rows": _quantize_rows,
    "linear": _linear,
    "head_linear": _linear,
    "rope_table": _rope_table,
    "rope": _rope,
    "add": _add,
    "concat": _concat,
    "swiglu": _swiglu,
}
