"""What absorbed attention computes at a time, and where its partial result lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.targets import tir as T
from dsv3c.targets.calls.attention import MlaAbsorbed
from dsv3c.targets.calls.sparse import MlaSparse
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.cache import cache_row
from dsv3c.targets.cpu.kernels.frame import Buffer
from dsv3c.targets.cpu.kernels.vector import WIDTH, load, store

Expr = Any
Spec = MlaAbsorbed | MlaSparse

PAGE = 16  # slots that are contiguous in memory; pages hold a multiple of them
BLOCK = 64  # slots of one softmax step
PARTS = 16  # partial results at least, so tasks at most


def tiles_of(heads: int) -> int:
    """Groups of at most sixteen heads."""
    return -(-heads // LANES)


def parts(heads: int) -> int:
    """Partial results that the scratch operand holds."""
    return max(PARTS, 4 * tiles_of(heads))


@dataclass(frozen=True)
class Part:
    """Offsets of one task's slice of the scratch operand, in float32 elements. Rows of sixteen hold heads."""

    query: Expr  # [width, 16], or bfloat16 pairs [width/2, 16]
    scores: Expr  # [BLOCK + 1, 16], then the probabilities: float32 (times the factors, if any), or bfloat16 pairs
    largest: Expr  # [16] of the unscaled scores
    total: Expr  # [16]
    factor: Expr  # [16]
    sums: Expr  # [heads of a tile, rank]
    rows: Expr  # [PAGE, width]: the rows that are scored as float32, where the cache and products have other elements
    factors: Expr  # [BLOCK]: of their latents, see `coded`
    merged: Expr  # [heads of a tile, rank]: the chunks so far, where one task does all of a context
    merged_largest: Expr  # [16]
    merged_total: Expr  # [16]
    size: int

    @classmethod
    def of(cls, spec: Spec, index: Expr) -> Part:
        width, rank = spec.paging.width, spec.paging.rank
        sizes = [width * LANES, (BLOCK + 1) * LANES, LANES, LANES, LANES, LANES * -(-rank // LANES) * LANES]
        sizes += [PAGE * width if spec.paging.element != "f32" else 0, BLOCK if spec.paging.coded else 0]
        sizes += [LANES * -(-rank // LANES) * LANES, LANES, LANES]
        size = sum(sizes)
        return cls(*[*(index * size + sum(sizes[:i]) for i in range(len(sizes))), size])


@dataclass(frozen=True)
class Unit:
    """What the emission of one chunk of one token's context needs."""

    spec: Spec
    level: IsaLevel
    buffers: dict[str, Buffer]
    at: Part
    token: Expr
    head: Expr  # the first
    heads: int
    chosen: Buffer | None = None  # i64 [BLOCK + PAGE]: where rows lie of which each is chosen; None: in pages

    @property
    def scratch(self) -> Buffer:
        return self.buffers["scratch"]

    @property
    def paired(self) -> bool:
        """Whether products take pairs of bfloat16."""
        paging = self.spec.paging
        whole = paging.rank % (2 * WIDTH) == 0 and paging.d % 2 == 0
        return self.level.dot2 is not None and paging.element == "bf16" and whole

    @property
    def decodes(self) -> bool:
        """Whether rows become float32 before they are scored: all heads take each of their columns, and a scalar of
        memory goes into all lanes at no cost."""
        return self.spec.paging.element != "f32" and not self.paired

    def page(self, slot: Expr) -> Expr:
        """Offset of the cache row of a slot, and of the PAGE rows from there on."""
        return cache_row(self.spec.paging, self.buffers["page_table"], self.buffers["sequence"][self.token], slot)

    def find_chosen(self, first: Expr, end: Expr) -> None:
        """Note where the rows of a block's chosen positions lie from the `first` on, and of the page behind it; those
        past the `end` lie where the last does."""
        if not isinstance(self.spec, MlaSparse):
            return
        start = T.bind(self.token * self.spec.k)
        with T.serial(0, BLOCK + PAGE) as slot:
            position = T.bind(self.buffers["chosen"][start + T.min(first + slot, end - 1)])
            store(self.chosen, slot, self.page(position), 1)

    def row(self, rows: Expr, slot: Expr, of_block: Expr) -> Expr:
        """Where the row of a slot lies: the one so many behind `rows`, or that chosen for a slot of the block."""
        if self.chosen is not None:
            return self.chosen[of_block]
        return rows + T.Cast("int64", slot) * self.spec.paging.stride

    def get(self, offset: Expr) -> Expr:
        return load(self.scratch, offset, LANES)

    def put(self, offset: Expr, value: Expr) -> None:
        store(self.scratch, offset, value, LANES)
