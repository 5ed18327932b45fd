"""Operations on stored forms: quantised weights, packed weights, quantised activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dsv3c.compiler.core.ir import TensorType
from dsv3c.compiler.core.ops.table import Array, Op, float32, op_table, require
from dsv3c.compiler.formats.activations import quantize_rows
from dsv3c.compiler.formats.elements import NUMPY_DTYPES, as_float32
from dsv3c.compiler.formats.keeping import NO_LOSS, Loss
from dsv3c.compiler.formats.layouts import LAYOUTS
from dsv3c.compiler.formats.quant import QTensor, stored
from dsv3c.compiler.formats.table import WeightFormat

ACTIVATION_PREFIX = "q8-g"


@dataclass(frozen=True)
class Packed:
    """A weight in a target's layout: the plain arrays that are stored, and what they decode to ([..., n, k]).

    loss: as in QTensor.
    """

    components: dict[str, Array]
    format: WeightFormat
    n: int
    k: int
    layout: str
    loss: Loss = NO_LOSS


@dataclass(frozen=True)
class QRows:
    """Activations rounded to int8 in groups along K: data [..., Kp], scale and sum [..., Kp/group]; logical size k."""

    data: Array
    scale: Array
    sum: Array
    k: int


def format_of(type: TensorType) -> WeightFormat:
    """The weight format that a value of this type is stored in."""
    return WeightFormat.of_type(type.dtype)


def activation_group(type: TensorType) -> int:
    """Group size of a quantised activation's type q8-gA, 0 for any other type."""
    return int(type.dtype.removeprefix(ACTIVATION_PREFIX)) if type.dtype.startswith(ACTIVATION_PREFIX) else 0


def decoded(x: Any) -> Array:
    """The float32 array that a stored form stands for."""
    if isinstance(x, Packed):
        x = LAYOUTS[x.layout].unpack(x.components, x.format, x.n, x.k)
    if isinstance(x, QTensor):
        return x.dequantize()
    if isinstance(x, QRows):
        groups = x.data.reshape(*x.scale.shape, -1).astype(np.float32) * x.scale[..., None]
        return groups.reshape(x.data.shape)[..., : x.k]
    return as_float32(x)


def infer_quantize(weight: TensorType, format: str) -> TensorType:
    require(weight.dtype == "f32" and len(weight.shape) >= 2, "a weight is f32[..., N, K]")
    return TensorType(WeightFormat.parse(format).type_name, weight.shape)


def evaluate_quantize(weight: Array, format: str) -> Any:
    return stored(weight, WeightFormat.parse(format))


def infer_pack(weight: TensorType, layout: str) -> TensorType:
    require(not weight.layout, "the weight is packed already")
    require(layout in LAYOUTS, f"the layout {layout!r} is unknown")
    format = format_of(weight)
    require(layout in format.packings, f"the layout {layout!r} has no weights in {format}")
    return TensorType(weight.dtype, weight.shape, layout)


def evaluate_pack(weight: Any, layout: str) -> Packed:
    loss = NO_LOSS
    if isinstance(weight, QTensor):
        n, k, format, loss = weight.codes.shape[-2], weight.k, weight.format, weight.loss
    else:
        element = next(name for name, dtype in NUMPY_DTYPES.items() if dtype == weight.dtype)
        n, k, format = weight.shape[-2], weight.shape[-1], WeightFormat.of_type(element)
    return Packed(LAYOUTS[layout].pack(weight, format), format, n, k, layout, loss)


def infer_quantize_rows(x: TensorType, group: int) -> TensorType:
    require(x.dtype == "f32", "activations are f32")
    return TensorType(f"{ACTIVATION_PREFIX}{group}", x.shape)


def evaluate_quantize_rows(x: Array, group: int) -> QRows:
    return QRows(*quantize_rows(float32(x), group), x.shape[-1])


TABLE = op_table(
    Op("quantize", infer_quantize, evaluate_quantize, role="weight"),
    Op("pack", infer_pack, evaluate_pack, role="weight"),
    Op("quantize_rows", infer_quantize_rows, evaluate_quantize_rows, role="fused"),
)
