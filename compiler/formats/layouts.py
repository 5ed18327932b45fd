"""The packed weight layouts by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

from dsv3c.compiler.formats import nbits, rows16
from dsv3c.compiler.formats.quant import QTensor
from dsv3c.compiler.formats.rows16 import ComponentTypes
from dsv3c.compiler.formats.table import WeightFormat

Array = NDArray[Any]


class Layout(NamedTuple):
    """How a packed weight is stored: the types of its components, packing, and its exact inverse (see those of rows16).

    It has the formats whose packings name it.
    """

    component_types: Callable[[WeightFormat, tuple[int, ...], int, int], ComponentTypes]
    pack: Callable[[QTensor | Array, WeightFormat], dict[str, Array]]
    unpack: Callable[[dict[str, Array], WeightFormat, int, int], QTensor | Array]


LAYOUTS: Mapping[str, Layout] = {
    rows16.NAME: Layout(rows16.component_types, rows16.pack, rows16.unpack),
    nbits.NAME: Layout(nbits.component_types, nbits.pack, nbits.unpack),
}
