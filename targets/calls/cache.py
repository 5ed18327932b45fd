"""The paged latent cache, and mla_write, which fills it.

A cache row is the normed latent [rank] then the rotated shared key [d]: float32, bfloat16, or coded (see
compiler/formats/coded_rows.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.compiler.formats.coded_rows import LARGEST, row_bytes
from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.targets.calls.operands import CONTROL, Operand, Rows, View, view_of


@dataclass(frozen=True)
class Paging:
    """page_table i32 [sequences, pages] of pages of `page_size` slots; cache rows of rank + d columns."""

    sequences: int
    pages: int
    page_size: int
    rank: int
    d: int
    element: str  # f32, bf16, or what codes are: int8, fp8

    @property
    def width(self) -> int:
        return self.rank + self.d

    @property
    def coded(self) -> bool:
        """Whether columns are codes, of which latent and key have a scale each."""
        return self.element in LARGEST

    @property
    def stride(self) -> int:
        """Elements of the cache operand in a row: columns, or bytes."""
        return row_bytes(self.width) if self.coded else self.width

    @property
    def row_bytes(self) -> int:
        return self.stride * int(NUMPY_DTYPES[self.cache.dtype].itemsize)

    @property
    def cache(self) -> Operand:
        return Operand("cache", "u8" if self.coded else self.element, None)

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
        paging.cache,
        Operand("kv_a", "f32", m * view.row_stride),
        Operand("weight", "f32", paging.rank),
        Operand("table", "f32", m * paging.d),
        *paging.operands(m),
    )
