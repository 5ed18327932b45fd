"""What units of matrix instructions have in common: the tile of a workgroup, its two sides, and how sums come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets.gpu.kernels.frame import THREADS, Buffer, Expr
from dsv3c.targets.gpu.kernels.weights import Weight

TILE = 64  # activation rows, and output rows
BLOCKS = TILE // LANES  # of the weight
K_TILE = 32  # a group along K is a multiple of it, or half of it
SLICES = THREADS // LANES
SIDE = 32  # of the square that each of four subgroups computes

# keep(activation row, pair of blocks, row within a block, (sum with the first block of the pair, with the second))
Keep = Callable[[Expr, Expr, Expr, tuple[Expr, Expr]], None]


@dataclass(frozen=True)
class Factors:
    """The sides of a tile: activations x[start(row < TILE) :], K of them, and the weight's blocks block(i < BLOCKS)."""

    weight: Weight
    block: Callable[[Expr], Expr]
    x: Buffer
    start: Callable[[Expr], Expr]

    @property
    def steps(self) -> int:
        """Turns of K_TILE values of K."""
        return -(-self.weight.chunks * self.weight.chunk // K_TILE)

    @property
    def parts(self) -> int:
        """Groups in K_TILE values of K: 1, or 2 of half of it."""
        return max(1, K_TILE // (self.weight.format.grouping.size or K_TILE))


class Unit(Protocol):
    """One kind of matrix instructions."""

    @property
    def capability(self) -> str:
        """What a device must have."""

    def serves(self, weight: WeightFormat) -> bool:
        """Whether it may multiply with such a weight."""

    def space(self) -> Any:
        """Shared memory of a product. Another one may have it when all threads came to a barrier in between."""

    def product(self, factors: Factors, thread: Expr, space: Any, keep: Keep) -> None:
        """Hand all sums of the tile to `keep`, each once; every thread of the workgroup must come here."""
