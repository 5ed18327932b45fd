"""The paged latent cache, and mla_write, which fills it.

A cache row is the normed latent [rank] then the rotated shared key [d], float32 or bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.targets.calls.operands import CONTROL, Operand, Rows, View, view_of


@dataclass(frozen=True)
class Paging:
    """page_table i32 [sequences, pages] of pages of `page_size` slots; cache rows of rank + d elements."""

    sequences: int
    pages: int
    page_size: int
    rank: int
    d: int
    element: str  # "f32" or "bf16"

    @property
    def width(self) -> int:
        return self.rank + self.d

    def operands(self, tokens: int) -> tuple[Operand, ...]:
        """The inputs that say where tokens lie."""
        return (
            Operand("positions", "i32", tokens),
            Operand("sequence", "i32", tokens),
            Operand("page_table", "i32", self.sequences * self.pages),
        )


@dataclass(frozen=True)
class MlaWrite:
    """cache row of each token = rms_norm(kv_a[:rank]) * weight | rope(kv_a[rank:]), kv_a f32 through `view` [T, L]."""

    rows: Rows
    paging: Paging
    eps: float
    interleave: bool
    view: View | None = None


def mla_write_operands(spec: MlaWrite) -> tuple[Operand, ...]:
    paging, m = spec.paging, spec.rows.maximum
    view = view_of(spec.view, 1, paging.width)
    return (
        CONTROL,
        Operand("cache", paging.element, None),
        Operand("kv_a", "f32", m * view.row_stride),
        Operand("weight", "f32", paging.rank),
        Operand("table", "f32", m * paging.d),
        *paging.operands(m),
    )
