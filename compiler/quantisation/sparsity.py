"""Small weights set to 0 before they are rounded, and how many are 0 afterwards.

It makes nothing smaller and nothing faster: codes of 0 take the bits of any other, and no kernel looks for groups of
them. A kernel that skipped them would save the bytes of whole groups, and a group is 0 only where all of its weights
were: of those of one size some always reach the group's root mean square. `Zeros` counts them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dsv3c.compiler.formats.quant import QTensor
from dsv3c.compiler.quantisation.inputs import Array


class Zeros(NamedTuple):
    """Of weights: how many, how many are 0; the same of their groups."""

    weights: int = 0
    zero_weights: int = 0
    groups: int = 0
    zero_groups: int = 0

    def plus(self, other: Zeros) -> Zeros:
        return Zeros(*(a + b for a, b in zip(self, other, strict=True)))


NO_ZEROS = Zeros()


def sparse(w: Array, threshold: float, size: int) -> Array:
    """w f32 [..., K] without those below threshold x the root mean square of their group of `size`; 0: of their row."""
    if not threshold:
        return w
    starts = _starts(w.shape[-1], size)
    lengths = np.diff(starts, append=w.shape[-1])
    square = np.add.reduceat(np.square(w), starts, axis=-1) / lengths
    least = np.repeat(np.float32(threshold) * np.sqrt(square), lengths, axis=-1)
    return np.where(np.abs(w) < least, np.float32(0), w)


def count_zeros(rounded: QTensor) -> Zeros:
    """What stands for 0 in a rounded weight, padding left out."""
    is_zero = rounded.dequantize() == 0
    starts = _starts(rounded.k, rounded.format.grouping.size)
    groups = np.logical_and.reduceat(is_zero, starts, axis=-1)
    return Zeros(is_zero.size, int(is_zero.sum()), groups.size, int(groups.sum()))


def _starts(k: int, size: int) -> Array:
    return np.arange(0, k, size or k)
