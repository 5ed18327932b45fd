"""Matrices and what is known of their inputs."""

from __future__ import annotations

import numpy as np

from dsv3c.compiler.quantisation.inputs import MatrixInputs


def correlated(rng, tokens, k):
    """Rows whose columns go together and differ in size, as activations do."""
    mixed = rng.standard_normal((tokens, k)) @ rng.standard_normal((k, k)) / np.sqrt(k)
    return ((mixed + 0.3 * rng.standard_normal((tokens, k))) * np.exp(rng.standard_normal(k))).astype(np.float32)


def problem(seed, n, k, tokens=300):
    rng = np.random.default_rng(seed)
    x = correlated(rng, tokens, k)
    return rng.standard_normal((n, k)).astype(np.float32), MatrixInputs(tokens, x.T @ x / np.float32(tokens))
