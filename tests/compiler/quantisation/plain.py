"""The methods once more, straight from the papers: slow loops over scalars in float64, and explicit inverses."""

from __future__ import annotations

import numpy as np


def decoded(rounded, grid, k):
    """float32 [N, K] that codes and scales stand for."""
    n, groups = rounded.scale.shape
    codes = rounded.codes.reshape(n, groups, -1)
    values = grid.values(codes, None if rounded.zero is None else rounded.zero[..., None])
    return (values * rounded.scale[..., None].astype(np.float32)).reshape(n, -1)[:, :k]


def error(w, rounded, grid, gram):
    difference = (w - decoded(rounded, grid, w.shape[1])).astype(np.float64)
    return float(np.trace(difference @ gram.astype(np.float64) @ difference.T))


def damped(gram, damping):
    gram = gram.astype(np.float64)
    return gram + damping * gram.diagonal().mean() * np.eye(len(gram))


def code(value, scale, zero, grid):
    """The nearest code of one number."""
    return min(max(round(value / scale) + zero, grid.lowest), grid.highest) if scale else zero


def gptq(w, gram, damping, grid, scale, zero, size):
    """Codes [N, K] of algorithm 1 of arXiv 2210.17323 without blocks; scale and zero [N, KG] of groups of `size`."""
    inverse = np.linalg.inv(damped(gram, damping))
    upper = np.linalg.cholesky(inverse).T
    return _columns(w.astype(np.float64), upper, grid, scale, zero, size, {})


def qronos(w, gram, cross, damping, grid, scale, zero, size):
    """Algorithm 1 of arXiv 2505.11695: the first column by its own formula, the rest by GPTQ on what is then best."""
    hessian = damped(gram, damping)
    target = cross.astype(np.float64) + (hessian - gram)
    w = w.astype(np.float64)
    rest = w.copy()
    codes = {}
    for n in range(len(w)):
        others = sum(hessian[0, j] * w[n, j] for j in range(1, w.shape[1]))
        first = (target[0] @ w[n] - others) / hessian[0, 0]
        codes[n] = code(first, scale[n, 0], zero[n, 0], grid)
        q = scale[n, 0] * (codes[n] - zero[n, 0])
        rest[n, 1:] = np.linalg.solve(hessian[1:, 1:], target[1:] @ w[n] - hessian[1:, 0] * q)
    upper = np.zeros_like(hessian)
    upper[1:, 1:] = np.linalg.cholesky(np.linalg.inv(hessian[1:, 1:])).T
    return _columns(rest, upper, grid, scale, zero, size, codes)


def _columns(w, upper, grid, scale, zero, size, first):
    w, codes = w.copy(), np.zeros(w.shape, np.uint8)
    for n in range(w.shape[0]):
        for i in range(w.shape[1]):
            if i == 0 and n in first:
                codes[n, 0] = first[n]
                continue
            own = scale[n, i // size], zero[n, i // size]
            codes[n, i] = code(w[n, i], *own, grid)
            left = (w[n, i] - own[0] * (int(codes[n, i]) - own[1])) / upper[i, i]
            for j in range(i + 1, w.shape[1]):
                w[n, j] -= left * upper[i, j]
    return codes


def best_scale(w, importance, grid, candidates):
    """Of the candidates the scale with the least weighted error for a group w [G], without zero points; its error."""

    def cost(scale):
        total = 0.0
        for value, weight in zip(w, importance, strict=True):
            total += weight * (value - scale * (code(value, scale, grid.zero, grid) - grid.zero)) ** 2
        return total

    return min((cost(float(scale)), float(scale)) for scale in candidates)
