"""The paged latent cache, as kernels find a row in it."""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from dsv3c.targets.cpu.kernels.cache import Paging
from dsv3c.targets.gpu.kernels.frame import Buffer, Expr


def slot(paging: Paging, page_table: Buffer, sequence: Expr, position: Expr) -> Expr:
    """The cache row of a position."""
    page = page_table[sequence * paging.pages + T.floordiv(position, paging.page_size)]
    return T.bind(page * paging.page_size + T.floormod(position, paging.page_size))
