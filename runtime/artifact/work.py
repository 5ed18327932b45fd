"""The work of steps of a plan, by the costs that it states."""

from __future__ import annotations

from collections.abc import Iterable

from dsv3c.runtime.artifact.costs import Cost, StepShape, Work, call_work, total
from dsv3c.runtime.artifact.plan import Call, Plan


def steps_work(plan: Plan, steps: Iterable[StepShape]) -> Work | None:
    """The work of steps; None when the plan does not state costs."""
    if plan.costs is None:
        return None
    return total(work_of(plan, step, call) for step in steps for call in plan.entries[step.entry].calls)


def work_of(plan: Plan, step: StepShape, call: Call) -> Work:
    """The work of one call in a step; only what weights it has is known of one that has no costs."""
    kernel, indices = call
    weight_bytes = sum(plan.buffers[index].bytes for index in set(indices) if plan.buffers[index].kind == "weight")
    return call_work((plan.costs or {}).get(kernel, Cost()), weight_bytes, step)
