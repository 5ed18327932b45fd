"""Sums over the rows that meet a matrix."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dsv3c.compiler.core.ops.table import Array
from dsv3c.compiler.quantisation.inputs import MatrixInputs

BLOCK = 2048  # rows that are taken at once


def blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))


def matrix_inputs(rows: Array, plain: Array | None = None, tokens: int | None = None) -> MatrixInputs:
    """rows [n, K]: as the matrix meets them. plain [n, K]: the same in the float model, None where they are `rows`.

    tokens: how many rows there were, where some of `rows` are zeros that stand for none.
    """
    count, size = rows.shape
    tokens = count if tokens is None else tokens
    gram = np.zeros((size, size), np.float32)
    cross = None if plain is None else np.zeros((size, size), np.float32)
    for block in blocks(count):
        part = np.ascontiguousarray(rows[block], np.float32)
        gram += part.T @ part
        if plain is not None and cross is not None:
            cross += part.T @ np.ascontiguousarray(plain[block], np.float32)
    for matrix in (gram, cross):
        if matrix is not None and tokens:
            matrix /= np.float32(tokens)
    return MatrixInputs(tokens, gram, cross)
