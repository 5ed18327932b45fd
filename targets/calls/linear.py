"""linear and head_linear: y[t, h, n] = sum over k of x[t, h, k] * w[h, n, k]."""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets.calls.operands import Rows, View


@dataclass(frozen=True)
class Linear:
    """x f32 through `view` [M, heads, k], or its q8 (M*heads rows) for integer weights; w packed [heads, n, k];
    y f32 [M, heads, n]. heads = 1 is the plain linear."""

    rows: Rows
    n: int
    k: int
    weight: WeightFormat
    heads: int = 1
    view: View | None = None  # of float activations; None: contiguous
