"""Entries that end with tokens instead of logits: those of the graph, with the sampling kernels behind them.

plan.json has them as

    "sampling": {"decode.greedy": {"entry": "decode", "calls": [[kernel, [buffers]], …], "token": buffer}, …}

for each entry that steps run, in the forms of the runtime's engine.sampling: greedy, ordered (temperature and min-p),
filtered (top-k and top-p, too). The input `sampling` i32 [R, 8] says how each row is drawn, the result is i32 [R].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsv3c.targets.calls.operands import Rows, operand_bytes
from dsv3c.targets.calls.plan import Plan
from dsv3c.targets.gpu.kernels import operands, stages
from dsv3c.targets.gpu.kernels.sampling.steps import Greedy, Sample

ENTRIES = ("decode", "prefill")
_ALIGNMENT = 64


def add_sampling(plan: Plan, content: Mapping[str, Any]) -> dict[str, Any]:
    """What `content` of the plan gets: the entries, and the arena with their results and scratch at its end."""
    rows = Rows(plan.bounds["R"], index=1)
    places = _Places(plan, content["arena_bytes"])
    found: dict[str, Any] = {}
    for entry in ENTRIES:
        if entry not in content["entries"]:
            continue
        logits = content["entries"][entry]["outputs"]["logits"]
        vocab = plan.buffers[logits]["size"] // rows.maximum
        forms = {
            "greedy": Greedy(rows, vocab),
            "ordered": Sample(rows, vocab, filtered=False),
            "filtered": Sample(rows, vocab),
        }
        for form, spec in forms.items():
            calls = [_call(plan, stage, places, logits) for stage in stages(spec)]
            found[f"{entry}.{form}"] = {"entry": entry, "calls": calls, "token": places.token}
    return {"sampling": found, "arena_bytes": places.end}


class _Places:
    """Where the token and the scratch lie, behind all results."""

    def __init__(self, plan: Plan, end: int) -> None:
        self._plan = plan
        self._start = -(-end // _ALIGNMENT) * _ALIGNMENT
        token = plan.bounds["R"]
        self.token = plan.behind("i32", token, self._start)
        self._scratch = self._start + -(-token * 4 // _ALIGNMENT) * _ALIGNMENT
        self.end = self._scratch

    def scratch(self, operand: Any) -> int:
        self.end = max(self.end, self._scratch + operand_bytes(operand))
        return self._plan.behind(operand.dtype, operand.size, self._scratch)


def _call(plan: Plan, stage: Any, places: _Places, logits: int) -> list[Any]:
    listed = operands(stage)
    buffers = {"logits": logits, "token": places.token}
    for operand in listed:
        if operand.role in ("control", "sampling"):
            buffers[operand.role] = plan.input(operand.role, "int32", int(operand.size or 0))
        elif operand.role == "scratch":
            buffers["scratch"] = places.scratch(operand)
    return plan.added_call("sample", stage, [buffers[operand.role] for operand in listed])
