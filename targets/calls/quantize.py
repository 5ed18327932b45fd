"""quantize_rows: float rows to int8 codes, a scale and a code sum per group (see compiler/formats/activations.py)."""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.compiler.formats.grouping import padded_k
from dsv3c.targets.calls.operands import Rows, View


@dataclass(frozen=True)
class QuantizeRows:
    """x f32 through `view` [M, heads, k] -> y.data i8 [M*heads, Kp], y.scale f32 and y.sum i32 [M*heads, Kp/group]."""

    rows: Rows
    k: int
    group: int
    heads: int = 1
    view: View | None = None

    @property
    def groups(self) -> int:
        return padded_k(self.k, self.group) // self.group
