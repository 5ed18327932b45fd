"""What is known of the rows that meet a matrix of weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.errors import StatisticsError

Array = NDArray[Any]

DAMPING = 0.01  # of the mean of the diagonal, as in GPTQ's own programs
_MOST_DAMPING = 1.0
_MOST_EXACT = 4096  # inputs of which the Hessian is factored in float64; copies of larger ones would fill the memory
_PANEL = 256


class Factor(NamedTuple):
    """The Hessian as methods use it that round one column after the other.

    hessian f32 [K, K]: the damped gram. carry f32 [K, K], strictly lower triangular: where columns i < j have the
    errors e_i, column j is best aimed at w_j + sum of carry[j, i] e_i. cost f32 [K]: what the square of a miss of that
    aim costs when all later columns make up for it.
    """

    hessian: Array
    carry: Array
    cost: Array


@dataclass(frozen=True, eq=False)
class MatrixInputs:
    """tokens: rows seen. gram f32 [K, K]: sum of x̂ x̂ᵀ / tokens, x̂ the rows that meet the matrix in the model as it is
    quantised so far. cross f32 [K, K]: sum of x̂ xᵀ / tokens, x the same rows in the float model; None where x̂ = x.

    Raises StatisticsError for numbers that are not finite.
    """

    tokens: int
    gram: Array
    cross: Array | None = None

    def __post_init__(self) -> None:
        for name, matrix in (("gram", self.gram), ("cross", self.cross)):
            if matrix is not None and not np.isfinite(matrix).all():
                raise StatisticsError(matrix=name, tokens=self.tokens)

    @property
    def importance(self) -> Array:
        """f32 [K]: mean square of each input; all 1 where no input was ever other than 0."""
        found = np.ascontiguousarray(self.gram.diagonal(), np.float32)
        return found if found.any() else np.ones_like(found)

    def output_error(self, error: Array) -> float:
        """Mean square error of a row of outputs, summed over outputs, for an error [N, K] of the weights."""
        return float(np.vdot(error @ self.gram, error))

    @cached_property
    def factor(self) -> Factor:
        """Kept: matrices that meet the same rows share it. Raises LinAlgError where there is none."""
        return factored(self.gram)


def factored(gram: Array, damping: float = DAMPING) -> Factor:
    """By Cholesky of the damped gram from its last column on, damped more as long as there is none. Raises LinAlgError.

    The gram R Rᵀ with R upper triangular makes the error of a row |e R|²: column j of R meets e_0 … e_j alone, so that
    later columns can make up for all that they share with e_j, and R_jj² of it stays. That is GPTQ (arXiv 2210.17323)
    without an inverse: the rows of its Cholesky factor of the inverse Hessian are those of R⁻¹.
    """
    size = gram.shape[0]
    hessian: Array = gram.astype(np.float64 if size <= _MOST_EXACT else np.float32)
    hessian += hessian.T
    hessian *= 0.5
    diagonal = hessian.diagonal().copy()
    dead = diagonal <= 0
    mean = float(diagonal.mean()) if not dead.all() else 1.0
    # An input that is never other than 0 tells nothing: its weights are rounded alone.
    hessian[dead] = hessian[:, dead] = 0
    diagonal[dead] = mean
    while True:
        np.fill_diagonal(hessian, diagonal + damping * mean)
        try:
            turned = hessian[::-1, ::-1].copy()
            lower = np.linalg.cholesky(turned) if size <= _MOST_EXACT else _cholesky_in_place(turned)
            break
        except np.linalg.LinAlgError:
            if damping >= _MOST_DAMPING:
                raise
            damping = min(_MOST_DAMPING, max(damping, 1e-6) * 10)
    # R reversed in both axes is `lower`; carry[j, i] is R_ij / R_jj.
    root = lower.diagonal()[::-1].copy()
    carry = np.ascontiguousarray(lower[::-1, ::-1].T, np.float32)
    del lower
    carry /= root[:, None].astype(np.float32)
    np.fill_diagonal(carry, 0)
    return Factor(hessian.astype(np.float32, copy=False), carry, (root * root).astype(np.float32))


def _cholesky_in_place(matrix: Array) -> Array:
    """The lower factor, in the memory of the matrix and in its precision: numpy's is computed in float64.

    Column by column of blocks, each less what those before it share with it. Raises LinAlgError.
    """
    for start in range(0, len(matrix), _PANEL):
        stop = min(start + _PANEL, len(matrix))
        columns = matrix[start:, start:stop]
        columns -= matrix[start:, :start] @ matrix[start:stop, :start].T
        corner = np.linalg.cholesky(columns[: stop - start])
        columns[: stop - start] = corner
        columns[stop - start :] = columns[stop - start :] @ np.linalg.inv(corner).T.astype(matrix.dtype)
        matrix[start:stop, stop:] = 0
    return matrix
