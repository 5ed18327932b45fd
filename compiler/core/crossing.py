"""From how many tokens on a step should rebuild keys and values instead of scoring in latent space."""

from __future__ import annotations

import math

from dsv3c.runtime.artifact.plan import NEVER


def materialize_from(
    rank: int, nope: int, rope: int, v: int, absorbed_rate: float = 1.0, rebuild_rate: float = 1.0
) -> int:
    """Tokens of a step from which materialised attention is the faster form; NEVER when it never is.

    Operations per head and context row: absorbed 2(2 rank + rope) a token; materialised 2(nope + rope + v) a token, and
    once 2 rank (nope + v) to rebuild the row. absorbed_rate, rebuild_rate: operations a second of absorbed attention's
    kernel, and of rebuilding, as multiples of those of materialised attention's other products.
    """
    saved = (2 * rank + rope) / absorbed_rate - (nope + rope + v)
    if saved <= 0:
        return NEVER
    return min(NEVER, math.ceil(rank * (nope + v) / rebuild_rate / saved))
