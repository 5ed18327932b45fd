"""Entries that end with tokens instead of logits: those of the graph, with the sampling kernels behind them.

For each entry that steps run there is one in each form of the runtime's engine.sampling: greedy, ordered (temperature
and min-p), filtered (top-k and top-p, too). The input `sampling` i32 [R, 8] says how each row is drawn, the result is
i32 [R].
"""

from __future__ import annotations

from typing import Any

from dsv3c.runtime.artifact.plan import SHORT, Call
from dsv3c.targets.calls.operands import Rows, operand_bytes
from dsv3c.targets.calls.plan import PlanBuilder
from dsv3c.targets.gpu.kernels import operands, stages
from dsv3c.targets.gpu.kernels.sampling.steps import Greedy, Sample

ENTRIES = ("decode", "prefill", f"{SHORT}decode", f"{SHORT}prefill")
_ALIGNMENT = 64


def add_sampling(plan: PlanBuilder) -> None:
    """Add the entries, and at the end of the arena their results and scratch."""
    rows = Rows(plan.bounds["R"], index=1)
    places = _Places(plan)
    for entry in [plan.entries[name] for name in ENTRIES if name in plan.entries]:
        logits = entry.outputs["logits"].buffer
        vocab = plan.buffers[logits].size // rows.maximum
        forms = {
            "greedy": Greedy(rows, vocab),
            "ordered": Sample(rows, vocab, filtered=False),
            "filtered": Sample(rows, vocab),
        }
        for form, spec in forms.items():
            calls = [_call(plan, stage, places, logits) for stage in stages(spec)]
            plan.entries[f"{entry.name}.{form}"] = entry.drawn(f"{entry.name}.{form}", calls, places.token)
    plan.arena_bytes = places.end


class _Places:
    """Where the token and the scratch lie, behind all results."""

    def __init__(self, plan: PlanBuilder) -> None:
        self._plan = plan
        self._start = -(-plan.arena_bytes // _ALIGNMENT) * _ALIGNMENT
        token = plan.bounds["R"]
        self.token = plan.behind("i32", token, self._start)
        self._scratch = self._start + -(-token * 4 // _ALIGNMENT) * _ALIGNMENT
        self.end = self._scratch

    def scratch(self, operand: Any) -> int:
        self.end = max(self.end, self._scratch + operand_bytes(operand))
        return self._plan.behind(operand.dtype, operand.size, self._scratch)


def _call(plan: PlanBuilder, stage: Any, places: _Places, logits: int) -> Call:
    listed = operands(stage)
    buffers = {"logits": logits, "token": places.token}
    for operand in listed:
        if operand.role in ("control", "sampling"):
            buffers[operand.role] = plan.input(operand.role, "int32", int(operand.size or 0))
        elif operand.role == "scratch":
            buffers["scratch"] = places.scratch(operand)
    return plan.added_call("sample", stage, [buffers[operand.role] for operand in listed])
