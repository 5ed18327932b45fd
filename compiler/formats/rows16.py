"""The packed weight layout "rows16": sixteen output rows side by side in the vector lanes.

A weight [..., N, K] is cut into N16/16 blocks of sixteen rows (N padded to N16; padding rows decode to 0). Inside a
block K runs slowest, so that a kernel streams a block from start to end. Components, each a plain array:

    f32, f16   data  [..., N16/16, K, 16]
    bf16       data  [..., N16/16, K2/2, 16, 2]        K padded to even; the pair is (k even, k odd)
    int8       data  u8 [..., N16/16, Kp/4, 16, 4]
    int4       data  u8 [..., N16/16, Kp/8, 16, 4]     byte (b, r, j): k = 8b+j low nibble, k = 8b+4+j high nibble
    integers   scale [..., N16/16, KG, 16]             f16 when grouped, else f32 with KG = 1
    asymmetric zero  u8 [..., N16/16, KG, 16]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.formats.quant import NUMPY_DTYPES, QTensor, QuantSpec

Array = NDArray[Any]
LANES = 16
WORD = np.dtype("<u4")  # four codes of one row, moved as one

ComponentTypes = dict[str, tuple[str, tuple[int, ...]]]


def padded_rows(n: int) -> int:
    """N16: N rounded up to whole blocks."""
    return -(-n // LANES) * LANES


def component_types(spec: QuantSpec, leading: tuple[int, ...], n: int, k: int) -> ComponentTypes:
    """IR dtype and shape of each component of a packed weight [*leading, n, k], in operand order."""
    blocks = (*leading, padded_rows(n) // LANES)
    padded = spec.padded_k(k)
    if spec.element == "bf16":
        return {"data": ("bf16", (*blocks, padded // 2, LANES, 2))}
    if spec.is_float:
        return {"data": (spec.element, (*blocks, k, LANES))}
    codes_per_word = 32 // spec.bits
    types: ComponentTypes = {
        "data": ("u8", (*blocks, padded // codes_per_word, LANES, 4)),
        "scale": (spec.scale_dtype, (*blocks, spec.scale_groups(k), LANES)),
    }
    if not spec.symmetric:
        types["zero"] = ("u8", (*blocks, spec.scale_groups(k), LANES))
    return types


def pack(w: QTensor | Array, spec: QuantSpec) -> dict[str, Array]:
    """Components of `w`: a QTensor of the integer format `spec`, or float [..., N, K] cast to a float format."""
    if not isinstance(w, QTensor):
        return {"data": _pack_float(w, spec)}
    fill = 0 if w.zero is not None else spec.zero_point
    words = np.ascontiguousarray(_pad_rows(w.codes, fill)).view(WORD)  # [..., N16, Kp/4]
    if spec.bits == 4:
        words = words[..., 0::2] | (words[..., 1::2] << np.uint32(4))
    components = {"data": _bytes(_rows_to_lanes(words)), "scale": _rows_to_lanes(_pad_rows(w.scale, 0))}
    if w.zero is not None:
        components["zero"] = _rows_to_lanes(_pad_rows(w.zero, 0))
    return components


def unpack(components: dict[str, Array], spec: QuantSpec, n: int, k: int) -> QTensor | Array:
    """Inverse of `pack`: the QTensor, or the float array [..., n, k], that gave `components`."""
    if spec.is_float:
        return _unpack_float(components["data"], spec, n, k)
    lanes = np.ascontiguousarray(components["data"]).view(WORD)[..., 0]
    words = _lanes_to_rows(lanes)[..., :n, :]
    if spec.bits == 4:
        nibbles = np.uint32(0x0F0F0F0F)
        pairs = np.stack([words & nibbles, (words >> np.uint32(4)) & nibbles], axis=-1)
        words = pairs.reshape(*words.shape[:-1], -1)
    codes = np.ascontiguousarray(words).view(np.uint8)
    zero = components.get("zero")
    return QTensor(
        codes,
        _lanes_to_rows(components["scale"])[..., :n, :],
        None if zero is None else _lanes_to_rows(zero)[..., :n, :],
        spec,
        k,
    )


def _pack_float(w: Array, spec: QuantSpec) -> Array:
    rows = _pad_rows(w.astype(NUMPY_DTYPES[spec.element], copy=False), 0)
    if spec.element != "bf16":
        return _rows_to_lanes(rows)
    if rows.shape[-1] % 2:
        rows = np.concatenate([rows, np.zeros_like(rows[..., :1])], axis=-1)
    pairs = np.ascontiguousarray(rows).view(np.uint32)
    packed = _rows_to_lanes(pairs)
    return packed.view(rows.dtype).reshape(*packed.shape, 2)


def _unpack_float(data: Array, spec: QuantSpec, n: int, k: int) -> Array:
    if spec.element != "bf16":
        return _lanes_to_rows(data)[..., :n, :]
    pairs = np.ascontiguousarray(data).view(np.uint32)[..., 0]
    return np.ascontiguousarray(_lanes_to_rows(pairs)).view(data.dtype)[..., :n, :k]


def _pad_rows(x: Array, fill: int) -> Array:
    """x[..., N, K] with rows of `fill` up to N16."""
    *leading, n, k = x.shape
    if n % LANES == 0:
        return x
    out = np.full((*leading, padded_rows(n), k), fill, x.dtype)
    out[..., :n, :] = x
    return out


def _rows_to_lanes(x: Array) -> Array:
    """[..., N16, K] -> contiguous [..., N16/16, K, 16]."""
    *leading, n, k = x.shape
    blocks = x.reshape(*leading, n // LANES, LANES, k)
    return np.ascontiguousarray(blocks.swapaxes(-1, -2))


def _lanes_to_rows(x: Array) -> Array:
    """[..., N16/16, K, 16] -> contiguous [..., N16, K]."""
    *leading, blocks, k, lanes = x.shape
    return np.ascontiguousarray(x.swapaxes(-1, -2)).reshape(*leading, blocks * lanes, k)


def _bytes(words: Array) -> Array:
    """u32 [..., 16] as u8 [..., 16, 4]."""
    return words.view(np.uint8).reshape(*words.shape, 4)
