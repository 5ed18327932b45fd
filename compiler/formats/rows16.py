"""The packed weight layout "rows16": sixteen output rows side by side in the vector lanes.

A weight [..., N, K] is cut into N16/16 blocks of sixteen rows (N padded to N16; padding rows decode to 0). Inside a
block K runs slowest, so that a kernel streams a block from start to end. How a row is stored says its format's packing,
`Elements` or `Planes`. Components, each a plain array:

    f32, f16   data  [..., N16/16, K, 16]
    bf16       data  [..., N16/16, K2/2, 16, 2]          K padded to even; the pair is (k even, k odd)
    codes      data  u8 [..., N16/16, Kp/c * w, 16, 4]   units of c columns in w words, see Planes
      8 bits         u8 [..., N16/16, Kp/4, 16, 4]
      4 bits         u8 [..., N16/16, Kp/8, 16, 4]       byte (b, r, j): k = 8b+j low nibble, k = 8b+4+j high nibble
    codes      scale [..., N16/16, KG, 16]
    own zeros  zero  [..., N16/16, KG, 16]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.compiler.formats.packings import WORD, Elements, Planes
from dsv3c.compiler.formats.quant import QTensor
from dsv3c.compiler.formats.table import WeightFormat

Array = NDArray[Any]
NAME = "rows16"
LANES = 16

ComponentTypes = dict[str, tuple[str, tuple[int, ...]]]


def padded_rows(n: int) -> int:
    """N16: N rounded up to whole blocks."""
    return -(-n // LANES) * LANES


def planes_of(format: WeightFormat) -> Planes:
    """How the codes of a format of codes are stored."""
    packing = format.packings[NAME]
    assert isinstance(packing, Planes), f"{format} has no codes"
    return packing


def elements_of(format: WeightFormat) -> Elements:
    """How the numbers of a format of plain floats are stored."""
    packing = format.packings[NAME]
    assert isinstance(packing, Elements), f"{format} has codes"
    return packing


def stored_columns(format: WeightFormat, k: int) -> int:
    """Columns of K that a block holds: K, and what its codes or its packing pad."""
    if format.has_codes:
        return format.padded_k(k)
    columns = elements_of(format).columns
    return -(-k // columns) * columns


def component_types(format: WeightFormat, leading: tuple[int, ...], n: int, k: int) -> ComponentTypes:
    """IR dtype and shape of each component of a packed weight [*leading, n, k], in operand order."""
    blocks = (*leading, padded_rows(n) // LANES)
    columns = stored_columns(format, k)
    if format.element:
        together = elements_of(format).together
        beside = (together,) if together > 1 else ()
        return {"data": (format.element, (*blocks, columns // together, LANES, *beside))}
    planes, grouping = planes_of(format), format.grouping
    groups = (*blocks, format.scale_groups(k), LANES)
    types: ComponentTypes = {
        "data": ("u8", (*blocks, columns // planes.columns * planes.words, LANES, WORD.itemsize)),
        "scale": (grouping.stored_scale, groups),
    }
    return types | ({"zero": (grouping.zero, groups)} if grouping.zero else {})


def pack(w: QTensor | Array, format: WeightFormat) -> dict[str, Array]:
    """Components of `w`: a QTensor of `format`, or numbers [..., N, K] cast to a format of plain floats."""
    if not isinstance(w, QTensor):
        return {"data": _pack_floats(w, format)}
    fill = 0 if w.zero is not None else format.zero_point
    words = planes_of(format).pack(_pad_rows(w.codes, fill))
    scale = w.scale.view(NUMPY_DTYPES[format.grouping.stored_scale])
    components = {"data": _bytes(_rows_to_lanes(words)), "scale": _rows_to_lanes(_pad_rows(scale, 0))}
    if w.zero is not None:
        components["zero"] = _rows_to_lanes(_pad_rows(w.zero, 0))
    return components


def unpack(components: dict[str, Array], format: WeightFormat, n: int, k: int) -> QTensor | Array:
    """Inverse of `pack`: the QTensor, or the float array [..., n, k], that gave `components`."""
    if not format.has_codes:
        return _unpack_floats(components["data"], format, n, k)
    lanes = np.ascontiguousarray(components["data"]).view(WORD)[..., 0]
    zero = components.get("zero")
    return QTensor(
        planes_of(format).unpack(_lanes_to_rows(lanes)[..., :n, :]),
        _lanes_to_rows(components["scale"])[..., :n, :].view(NUMPY_DTYPES[format.grouping.scale]),
        None if zero is None else _lanes_to_rows(zero)[..., :n, :],
        format,
        k,
    )


def _pack_floats(w: Array, format: WeightFormat) -> Array:
    together = elements_of(format).together
    rows = _pad_rows(w.astype(NUMPY_DTYPES[format.type_name], copy=False), 0)
    if together == 1:
        return _rows_to_lanes(rows)
    missing = -rows.shape[-1] % together
    if missing:
        rows = np.concatenate([rows, np.zeros_like(rows[..., :missing])], axis=-1)
    side_by_side = np.ascontiguousarray(rows).view(_joined(rows.dtype, together))
    packed = _rows_to_lanes(side_by_side)
    return packed.view(rows.dtype).reshape(*packed.shape, together)


def _unpack_floats(data: Array, format: WeightFormat, n: int, k: int) -> Array:
    together = elements_of(format).together
    if together == 1:
        return _lanes_to_rows(data)[..., :n, :]
    side_by_side = np.ascontiguousarray(data).view(_joined(data.dtype, together))[..., 0]
    return np.ascontiguousarray(_lanes_to_rows(side_by_side)).view(data.dtype)[..., :n, :k]


def _joined(dtype: np.dtype[Any], together: int) -> np.dtype[Any]:
    """What is as wide as `together` elements."""
    return np.dtype(f"<u{dtype.itemsize * together}")


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
