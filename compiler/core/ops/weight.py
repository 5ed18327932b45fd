"""Operations on stored forms: quantised weights, packed weights, quantised activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dsv3c.compiler.core.ir import TensorType
from dsv3c.compiler.core.ops.table import Array, Op, float32, op_table, require
from dsv3c.compiler.formats import quant
from dsv3c.compiler.formats.layouts import LAYOUTS
from dsv3c.compiler.formats.quant import QTensor, QuantSpec

ACTIVATION_PREFIX = "q8-g"


@dataclass(frozen=True)
class Packed:
    """A weight in a target's layout: the plain arrays that are stored, and what they decode to ([..., n, k])."""

    components: dict[str, Array]
    spec: QuantSpec
    n: int
    k: int
    layout: str


@dataclass(frozen=True)
class QRows:
    """Activations rounded to int8 in groups along K: data [..., Kp], scale and sum [..., Kp/group]; logical size k."""

    data: Array
    scale: Array
    sum: Array
    k: int


def spec_of(type: TensorType) -> QuantSpec:
    """The weight format that a value of this type is stored in."""
    return QuantSpec.floating(type.dtype) if type.dtype in ("f32", "f16", "bf16") else QuantSpec.parse(type.dtype)


def activation_group(type: TensorType) -> int:
    """Group size of a quantised activation's type q8-gA, 0 for any other type."""
    return int(type.dtype.removeprefix(ACTIVATION_PREFIX)) if type.dtype.startswith(ACTIVATION_PREFIX) else 0


def decoded(x: Any) -> Array:
    """The float32 array that a stored form stands for."""
    if isinstance(x, Packed):
        x = LAYOUTS[x.layout].unpack(x.components, x.spec, x.n, x.k)
    if isinstance(x, QTensor):
        return x.dequantize()
    if isinstance(x, QRows):
        groups = x.data.reshape(*x.scale.shape, -1).astype(np.float32) * x.scale[..., None]
        return groups.reshape(x.data.shape)[..., : x.k]
    return quant.as_float32(x)


def infer_quantize(weight: TensorType, format: str) -> TensorType:
    spec = QuantSpec.parse(format)
    require(weight.dtype == "f32" and len(weight.shape) >= 2, "a weight is f32[..., N, K]")
    return TensorType(spec.element if spec.is_float else spec.name, weight.shape)


def evaluate_quantize(weight: Array, format: str) -> Any:
    spec = QuantSpec.parse(format)
    if spec.is_float:
        return quant.to_float(weight, spec)
    return quant.quantize(weight if spec.is_fp8 else quant.as_float32(weight), spec)


def infer_pack(weight: TensorType, layout: str) -> TensorType:
    require(not weight.layout, "the weight is packed already")
    require(layout in LAYOUTS, f"the layout {layout!r} is unknown")
    return TensorType(weight.dtype, weight.shape, layout)


def evaluate_pack(weight: Any, layout: str) -> Packed:
    if isinstance(weight, QTensor):
        n, k, spec = weight.codes.shape[-2], weight.k, weight.spec
    else:
        n, k, spec = weight.shape[-2], weight.shape[-1], QuantSpec.floating(_float_name(weight))
    return Packed(LAYOUTS[layout].pack(weight, spec), spec, n, k, layout)


def _float_name(weight: Array) -> str:
    return next(name for name in ("f32", "f16", "bf16") if quant.NUMPY_DTYPES[name] == weight.dtype)


def infer_quantize_rows(x: TensorType, group: int) -> TensorType:
    require(x.dtype == "f32", "activations are f32")
    return TensorType(f"{ACTIVATION_PREFIX}{group}", x.shape)


def evaluate_quantize_rows(x: Array, group: int) -> QRows:
    return QRows(*quant.quantize_rows(float32(x), group), x.shape[-1])


TABLE = op_table(
    Op("quantize", infer_quantize, evaluate_quantize, role="weight"),
    Op("pack", infer_pack, evaluate_pack, role="weight"),
    Op("quantize_rows", infer_quantize_rows, evaluate_quantize_rows, role="fused"),
)
