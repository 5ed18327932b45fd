"""The packed weight layout "nbits": integer weights as ONNX Runtime's MatMulNBits and QMoE read them.

Rows of a weight [..., N, K] stay rows; K is padded to whole groups Kp with codes that decode to 0. Components:

    int8       data  u8 [..., N, Kp]
    int4       data  u8 [..., N, Kp/2]         byte j: k = 2j low nibble, k = 2j+1 high nibble
    integers   scale [..., N, KG]              f16 when grouped, else f32 with KG = 1
    asymmetric zero  u8 [..., N, ceil(KG/2)]   nibbles as in data, groups instead of columns

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


def component_types(
    format: WeightFormat, leading: tuple[int, ...], n: int, k: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """IR dtype and shape of each component of a packed weight [*leading, n, k], in operand order."""
    rows, groups, bits = (*leading, n), format.scale_groups(k), bits_of(format)
    types = {
        "data": ("u8", (*rows, format.padded_k(k) * bits // 8)),
        "scale": (format.grouping.scale, (*rows, groups)),
    }
    if format.grouping.zero:
        types["zero"] = (format.grouping.zero, (*rows, -(-groups * bits // 8)))
    return types


def pack(w: QTensor | Array, format: WeightFormat) -> dict[str, Array]:
    """Components of a QTensor of `format`."""
    assert isinstance(w, QTensor), "floats are stored as they are"
    bits = bits_of(format)
    components = {"data": _narrow(w.codes, bits), "scale": w.scale}
    if w.zero is not None:
        components["zero"] = _narrow(w.zero, bits)
    return components


def unpack(components: dict[str, Array], format: WeightFormat, n: int, k: int) -> QTensor:
    """Inverse of `pack`."""
    zero, bits = components.get("zero"), bits_of(format)
    return QTensor(
        _wide(components["data"], bits, format.padded_k(k)),
        components["scale"],
        None if zero is None else _wide(zero, bits, format.scale_groups(k)),
        format,
        k,
    )


def _narrow(codes: Array, bits: int) -> Array:
    """u8 codes [..., K] with `bits` bits each, two nibbles a byte for 4; an odd last one has a zero beside it."""
    if bits == 8:
        return codes
    low, high = codes[..., 0::2], codes[..., 1::2]
    packed: Array = low.copy()
    packed[..., : high.shape[-1]] |= high << np.uint8(4)
    return packed


def _wide(packed: Array, bits: int, count: int) -> Array:
    """Inverse of `_narrow` for `count` codes."""
    if bits == 8:
        return packed
    pairs = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)
    return pairs.reshape(*packed.shape[:-1], -1)[..., :count]
