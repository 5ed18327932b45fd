"""The work of steps of a plan, by the costs that it states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from dsv3c.runtime.artifact.costs import Cost, StepShape, Work, call_work, total
from dsv3c.runtime.artifact.plan import Call, Plan


def steps_work(plan: Plan, steps: Iterable[StepShape]) -> Work | None:
    """The work of steps; None when the plan does not state costs."""
    if plan.costs is None:
        return None
    return total(work_of(plan, step, call) for step in steps for call in plan.entries[step.entry].calls)


def work_of(plan: Plan, step: StepShape, call: Call) -> Work:
    """The work of one call in a step; only what weights it has is known of one that has no costs."""
    cost, weight_bytes = _cost_of(plan, call)
    return call_work(cost, weight_bytes, step)


def weight_bytes_of(plan: Plan, entry: str) -> Callable[[int, int], float]:
    """f(tokens, rows): bytes of weights that a step of the entry reads. Quick: to be asked between two steps."""
    by_cost = Counter[Cost]()
    for call in plan.entries[entry].calls:
        cost, weight_bytes = _cost_of(plan, call)
        by_cost[cost] += weight_bytes

    def weight_bytes_read(tokens: int, rows: int) -> float:
        step = StepShape(entry, tokens, rows, 0)
        return sum(call_work(cost, weight_bytes, step).weight_bytes for cost, weight_bytes in by_cost.items())

    return weight_bytes_read


def _cost_of(plan: Plan, call: Call) -> tuple[Cost, int]:
    """And the bytes of its weights."""
    kernel, indices = call
    weight_bytes = sum(plan.buffers[index].bytes for index in set(indices) if plan.buffers[index].kind == "weight")
    return (plan.costs or {}).get(kernel, Cost()), weight_bytes
