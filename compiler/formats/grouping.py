"""Which weights share a scale."""

from __future__ import annotations

from dataclasses import dataclass

ACTIVATIONS = 64  # columns of activations with a scale in common, where weights have one scale for all of K
UNIT = 32  # columns that K is padded to at least: no packing stores more of them as one


def padded_k(k: int, group: int) -> int:
    """K rounded up to whole groups of that size and to whole units."""
    whole = max(group, UNIT)
    return -(-k // whole) * whole


@dataclass(frozen=True)
class Grouping:
    """A scale for each output channel (size 0), or for each `size` weights of it along K, the last axis.

    scale: element type of the scales; "e8m0" is a power of two, stored as its exponent. zero: IR dtype of the codes
    that stand for 0 in each group; None: the grid says it.
    per_tensor: the channels of a matrix [N, K] all have the same scale and zero (size 0), stored for each of them.
    """

    size: int = 0
    scale: str = "f32"
    zero: str | None = None
    per_tensor: bool = False

    @property
    def stored_scale(self) -> str:
        """IR dtype that scales are stored as."""
        return "u8" if self.scale == "e8m0" else self.scale

    @property
    def activations(self) -> int:
        """Columns of activations with a scale in common in integer products: they meet one scale of the weights."""
        return self.size or ACTIVATIONS

    def padded_k(self, k: int) -> int:
        """K rounded up to whole groups, of weights and of activations, and to whole units."""
        return padded_k(k, self.activations)

    def count(self, k: int) -> int:
        """KG, the number of scales of one output channel."""
        return self.padded_k(k) // self.size if self.size else 1
