"""What a step of several rows takes, before one was measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from dsv3c.runtime.artifact.costs import StepShape
from dsv3c.runtime.artifact.plan import Plan
from dsv3c.runtime.artifact.work import steps_work


def growth(plan: Plan) -> Callable[[int], float]:
    """growth(rows): bytes of weights that a decoding step of so many rows reads, over those of one row, experts by
    their expected union. The rows themselves, as if nothing were shared, where the plan does not state costs."""
    if not plan.costs or "decode" not in plan.entries:
        return float

    @cache
    def weight_bytes(rows: int) -> float:
        work = steps_work(plan, [StepShape("decode", rows, rows, 0)])
        return 0.0 if work is None else work.weight_bytes

    return lambda rows: weight_bytes(rows) / weight_bytes(1)
