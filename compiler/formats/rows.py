"""The layout "rows", of weights that are not packed: each row decodes alone, as the gathers of an embedding want it.

plain floats   data  [..., N, K]
codes          data  i8 [..., N, K], less the grid's zero; scale [..., N]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.formats.quant import QTensor
from dsv3c.compiler.formats.table import FORMATS, WeightFormat

Array = NDArray[Any]
NAME = "rows"


def format_names() -> tuple[str, ...]:
    """The formats that this layout has."""
    return tuple(name for name, format in FORMATS.items() if NAME in format.packings)


def component_types(
    format: WeightFormat, leading: tuple[int, ...], n: int, k: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """IR dtype and shape of each component of a weight [*leading, n, k], in operand order."""
    if format.element:
        return {"data": (format.element, (*leading, n, k))}
    return {"data": ("i8", (*leading, n, k)), "scale": (format.grouping.scale, (*leading, n))}


def pack(w: QTensor) -> dict[str, Array]:
    """Components of a weight of codes."""
    assert NAME in w.format.packings, f"a row of {w.format} does not decode alone"
    signed = (w.codes[..., : w.k] ^ np.uint8(w.format.zero_point)).view(np.int8)
    return {"data": signed, "scale": w.scale[..., 0]}
