"""The packed weight layouts by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

from dsv3c.compiler.formats import nbits, rows16
from dsv3c.compiler.formats.quant import QTensor, QuantSpec
from dsv3c.compiler.formats.rows16 import ComponentTypes

Array = NDArray[Any]


class Layout(NamedTuple):
    """How a weight is stored: the types of its components, packing, and its exact inverse (see those of rows16)."""

    component_types: Callable[[QuantSpec, tuple[int, ...], int, int], ComponentTypes]
    pack: Callable[[QTensor | Array, QuantSpec], dict[str, Array]]
    unpack: Callable[[dict[str, Array], QuantSpec, int, int], QTensor | Array]


LAYOUTS: Mapping[str, Layout] = {
    "rows16": Layout(rows16.component_types, rows16.pack, rows16.unpack),
    "nbits": Layout(nbits.component_types, nbits.pack, nbits.unpack),
}
