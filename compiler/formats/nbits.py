"""The packed weight layout "nbits": integer weights as ONNX Runtime's MatMulNBits and QMoE read them.

Rows of a weight [..., N, K] stay rows; K is padded to whole blocks Kp with codes that decode to 0. A block is a
group, or where a row has one scale, as many columns as activations have in a group. Components:

    8 bits     data  u8 [..., N, Kp]
    4 bits     data  u8 [..., N, Kp/2]         byte j: k = 2j low nibble, k = 2j+1 high nibble
    2 bits     data  u8 [..., N, Kp/4]         byte j: k = 4j in the lowest two bits, and so on
    integers   scale [..., N, KG]              f16 of each block when grouped, else f32 with KG = 1
    asymmetric zero  u8 [..., N, ...]          as in data, one for each block instead of each column

Source: ContribOperators.md of microsoft/onnxruntime, MatMulNBits and QMoE.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.formats.packings import Dense
from dsv3c.compiler.formats.quant import QTensor
from dsv3c.compiler.formats.table import WeightFormat

Array = NDArray[Any]
NAME = "nbits"


def bits_of(format: WeightFormat) -> int:
    """Bits of a stored code, which are those of a stored zero point too."""
    packing = format.packings[NAME]
    assert isinstance(packing, Dense)
    return packing.bits


def blocks_of(format: WeightFormat, k: int) -> int:
    """Blocks of a row."""
    return -(-k // format.grouping.activations)


def component_types(
    format: WeightFormat, leading: tuple[int, ...], n: int, k: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """IR dtype and shape of each component of a packed weight [*leading, n, k], in operand order."""
    rows, blocks, bits = (*leading, n), blocks_of(format, k), bits_of(format)
    types = {
        "data": ("u8", (*rows, blocks * format.grouping.activations * bits // 8)),
        "scale": (format.grouping.scale, (*rows, blocks if format.grouping.size else 1)),
    }
    if format.grouping.zero:
        types["zero"] = (format.grouping.zero, (*rows, -(-blocks * bits // 8)))
    return types


def pack(w: QTensor | Array, format: WeightFormat) -> dict[str, Array]:
    """Components of a QTensor of `format`."""
    assert isinstance(w, QTensor), "floats are stored as they are"
    bits, blocks, grouping = bits_of(format), blocks_of(format, w.k), format.grouping
    scale = w.scale[..., :blocks]
    components = {"data": _narrow(w.codes[..., : blocks * grouping.activations], bits), "scale": scale}
    if w.zero is not None:
        zero = w.zero[..., :blocks] if grouping.size else np.repeat(w.zero, blocks, axis=-1)
        components["zero"] = _narrow(zero, bits)
    return components


def unpack(components: dict[str, Array], format: WeightFormat, n: int, k: int) -> QTensor:
    """Inverse of `pack`."""
    zero, bits, blocks = components.get("zero"), bits_of(format), blocks_of(format, k)
    groups, fill = format.scale_groups(k), 0 if format.grouping.zero else format.zero_point
    codes = _wide(components["data"], bits, blocks * format.grouping.activations)
    own = None if zero is None else _wide(zero, bits, blocks)[..., :groups]
    return QTensor(
        _padded(codes, format.padded_k(k), fill),
        _padded(components["scale"], groups, 0),
        None if own is None else _padded(own, groups, 0),
        format,
        k,
    )


def _padded(x: Array, count: int, fill: int) -> Array:
    """x with `fill` behind it along the last axis, up to `count`."""
    missing = count - x.shape[-1]
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)], constant_values=fill) if missing else x


def _narrow(codes: Array, bits: int) -> Array:
    """u8 codes [..., K] with `bits` bits each; zeros fill the last byte."""
    if bits == 8:
        return codes
    together = 8 // bits
    packed: Array = codes[..., ::together].copy()
    for at in range(1, together):
        own = codes[..., at::together]
        packed[..., : own.shape[-1]] |= own << np.uint8(at * bits)
    return packed


def _wide(packed: Array, bits: int, count: int) -> Array:
    """Inverse of `_narrow` for `count` codes."""
    if bits == 8:
        return packed
    mask = np.uint8((1 << bits) - 1)
    codes = np.stack([packed >> np.uint8(start) & mask for start in range(0, 8, bits)], axis=-1)
    return codes.reshape(*packed.shape[:-1], -1)[..., :count]
