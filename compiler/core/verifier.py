"""The contract of the IR, checked around every pass: types, in-place memory, and the operations legal in a phase."""

from __future__ import annotations

from collections.abc import Mapping

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Graph, Value, is_weight, value_names, value_text
from dsv3c.compiler.core.ops.table import infer_type
from dsv3c.compiler.errors import Dsv3cError, VerifyError

# Roles (see ops.table.Op) that are legal outside of weight expressions. Weights may use every operation in all phases.
PHASES: Mapping[str, tuple[str, ...]] = {
    "trace": ("leaf", "primitive", "view"),
    "fuse": ("leaf", "primitive", "view", "fused"),
    "kernel": ("leaf", "view", "fused"),
}
_AROUND = 3  # lines that an error shows before and behind the wrong one
# Primitives that are kernels themselves.
KERNEL_PRIMITIVES = ("take", "linear", "add", "concat", "scale_rows")


def verify(graph: Graph, phase: str, after: str, typed: set[Value] | None = None) -> None:
    """Raise VerifyError, with the lines around the wrong one, unless `graph` is valid in `phase`.

    typed: values whose types are known to be right, to which those of this graph are added: give one set to the calls
    for what a graph becomes, of which a pass changes a part.
    """
    memo: dict[Value, bool] = {}
    typed = set() if typed is None else typed
    for value in graph.values():
        reason = (None if value in typed else _type_fault(value)) or _phase_fault(value, phase, memo)
        if reason:
            raise VerifyError(where=f"after {after}", reason=reason, context=_context(graph, value))
        typed.add(value)
    names, users = value_names(graph), graph.users()
    for value in users:
        shared = _overwritten(value, users, graph) if ops.lookup(value.op).in_place else None
        if shared is not None:
            reason = f"%{names[shared]} is read and also overwritten in place"
            raise VerifyError(where=f"after {after}", reason=reason, context=_context(graph, value))
    first: dict[str, Value] = {}
    for value, name in names.items():
        if first.setdefault(name, value) is not value:
            raise VerifyError(where=f"after {after}", reason=f"two values are %{name}", context=_context(graph, value))


def _type_fault(value: Value) -> str | None:
    if value.op in ("input", "param"):
        return None
    try:
        expected = infer_type(ops.lookup(value.op), tuple(source.type for source in value.inputs), value.semantics)
    except Dsv3cError as error:
        return str(error)
    return None if expected == value.type else f"the type should be {expected}"


def _phase_fault(value: Value, phase: str, memo: dict[Value, bool]) -> str | None:
    role = ops.lookup(value.op).role
    if role in PHASES[phase] or is_weight(value, memo):
        return None
    if phase == "kernel" and value.op in KERNEL_PRIMITIVES:
        return None
    return f"{value.op} is not legal in phase {phase!r}"


def _overwritten(writer: Value, users: Mapping[Value, list[Value]], graph: Graph) -> Value | None:
    """A value that `writer` overwrites although something else reads it too, itself or through a view; None if none."""
    results = {value for _, value in graph.results}
    if writer.inputs[0] in writer.inputs[1:]:
        return writer.inputs[0]
    reader, source = writer, writer.inputs[0]
    while users[source] == [reader] and source not in results:
        if ops.lookup(source.op).role != "view":
            return None
        reader, source = source, source.inputs[0]
    return source


def _context(graph: Graph, wrong: Value) -> str:
    names, values = value_names(graph), graph.values()
    at = values.index(wrong)
    lines = []
    for index in range(max(0, at - _AROUND), min(len(values), at + _AROUND + 1)):
        marker = ">" if index == at else " "
        lines.append(f"  {marker} {value_text(values[index], names)}")
    return "\n".join(lines)
