"""The contract of the IR, checked around every pass: types, in-place memory, and the operations legal in a phase."""

from __future__ import annotations

from collections.abc import Mapping

from dsv3c.compiler import ops
from dsv3c.compiler.errors import TypeRuleError, UnknownOpError, VerifyError
from dsv3c.compiler.ir import Graph, Value, is_weight, value_names, value_text

# Roles (see ops.table.Op) that are legal outside of weight expressions. Weights may use every operation in all phases.
PHASES: Mapping[str, tuple[str, ...]] = {
    "trace": ("leaf", "primitive", "view"),
    "fuse": ("leaf", "primitive", "view", "fused"),
    "kernel": ("leaf", "view", "fused"),
}
# Primitives that are kernels themselves.
KERNEL_PRIMITIVES = ("take", "linear", "add", "concat")


def verify(graph: Graph, phase: str, after: str) -> None:
    """Raise VerifyError, with the lines around the wrong one, unless `graph` is valid in `phase`."""
    memo: dict[Value, bool] = {}
    for value in graph.values():
        reason = _type_fault(value) or _phase_fault(value, phase, memo)
        if reason:
            raise VerifyError(where=f"after {after}", reason=reason, context=_context(graph, value))
    for value, users in graph.users().items():
        writers = [user for user in users if ops.lookup(user.op).in_place and user.inputs[0] == value]
        if writers and len(users) > 1:
            reason = f"%{value_names(graph)[value]} is read and also overwritten in place"
            raise VerifyError(where=f"after {after}", reason=reason, context=_context(graph, writers[0]))


def _type_fault(value: Value) -> str | None:
    if value.op in ("input", "param"):
        return None
    try:
        expected = ops.apply(value.op, value.inputs, value.semantics).type
    except (TypeRuleError, UnknownOpError) as error:
        return str(error)
    return None if expected == value.type else f"the type should be {expected}"


def _phase_fault(value: Value, phase: str, memo: dict[Value, bool]) -> str | None:
    role = ops.lookup(value.op).role
    if role in PHASES[phase] or is_weight(value, memo):
        return None
    if phase == "kernel" and value.op in KERNEL_PRIMITIVES:
        return None
    return f"{value.op} is not legal in phase {phase!r}"


def _context(graph: Graph, wrong: Value, around: int = 3) -> str:
    names, values = value_names(graph), graph.values()
    at = values.index(wrong)
    lines = []
    for index in range(max(0, at - around), min(len(values), at + around + 1)):
        marker = ">" if index == at else " "
        lines.append(f"  {marker} {value_text(values[index], names)}")
    return "\n".join(lines)
