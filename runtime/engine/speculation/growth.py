"""What steps take before one was measured: in bytes of weights, experts by their expected union."""

from __future__ import annotations

from collections.abc import Callable

from dsv3c.runtime.artifact.plan import Plan
from dsv3c.runtime.artifact.work import weight_bytes_of


def growth(plan: Plan) -> Callable[[int], float]:
    """growth(rows): bytes of weights that a decoding step of so many rows reads, over those of one row. The rows
    themselves, as if nothing were shared, where the plan does not state costs."""
    if not plan.costs or "decode" not in plan.entries:
        return float
    weight_bytes = weight_bytes_of(plan, "decode")
    one = weight_bytes(1, 1)
    return lambda rows: weight_bytes(rows, rows) / one


def cost(plan: Plan, drafter: Plan, entry: str) -> Callable[[int], float]:
    """cost(tokens): bytes of weights that a step of the drafter's `entry` reads for so many tokens of a sequence, over
    those of a decoding step of `plan` of one token. The tokens themselves where a plan does not state costs."""
    if not plan.costs or not drafter.costs or "decode" not in plan.entries or entry not in drafter.entries:
        return float
    one, weight_bytes = weight_bytes_of(plan, "decode")(1, 1), weight_bytes_of(drafter, entry)
    return lambda tokens: weight_bytes(tokens, 1) / one
