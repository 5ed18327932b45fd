"""The table of dispatches of a GPU artifact, checked, and what follows from it for one step.

plan.json of a GPU target holds, by kernel, the forms that its binary has (`dispatches`) and the threads of a workgroup
(`threads`). A step's token and row counts T and R decide which form of each kernel is launched and with how many
workgroups, so that the host knows both without asking the device. Calls whose grid is empty are not launched.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.fields import Fields
from dsv3c.runtime.artifact.plan import ELEMENT_BYTES, Entry, Plan
from dsv3c.runtime.devices.cpu.features import all_cpu_flags, unwanted
from dsv3c.runtime.errors import PlanInvalid, UnknownCapability

AXES = 3
T, R, ONE = 0, 1, 2  # what an axis counts: tokens, rows with logits, or nothing
Key = tuple[int, int]


@dataclass(frozen=True)
class Axis:
    """Workgroups along one axis: ceil(times * count / tile), at most `most`; counted: T, R or ONE."""

    times: int
    counted: int
    tile: int
    most: int | None

    def groups(self, tokens: int, rows: int) -> int:
        count = -(-self.times * (tokens, rows, 1)[self.counted] // self.tile)
        return count if self.most is None else min(count, self.most)


@dataclass(frozen=True)
class Form:
    """One form of a kernel: the function of that name in the binary.

    It serves steps whose `rows` (T or R) are at most `most_rows`, on devices that have all capabilities of `requires`.
    writes: positions of the operands it writes.
    """

    function: str
    rows: int
    most_rows: int | None
    grid: tuple[Axis, ...]
    writes: frozenset[int]
    requires: frozenset[str]


@dataclass(frozen=True)
class Table:
    """threads: of every workgroup. forms: by kernel; the first that serves a step is launched."""

    threads: int
    forms: Mapping[str, tuple[Form, ...]]

    def usable(self, capabilities: Collection[str]) -> Table:
        """Only the forms that a device with these capabilities runs, but for unwanted ones; each kernel has one that
        needs none. Raises UnknownCapability for an unwanted name that neither a kernel nor this CPU knows."""
        there = frozenset(capabilities) - self._unwanted()
        kept = {
            kernel: _reached(form for form in forms if form.requires <= there) for kernel, forms in self.forms.items()
        }
        return Table(self.threads, MappingProxyType(kept))

    def _unwanted(self) -> frozenset[str]:
        names = unwanted()
        known = frozenset(name for forms in self.forms.values() for form in forms for name in form.requires)
        if strange := names - known - (all_cpu_flags() if names - known else frozenset()):
            raise UnknownCapability(name=min(strange), known=", ".join(sorted(known)) or "none")
        return names


def _reached(forms: Iterable[Form]) -> tuple[Form, ...]:
    """Those up to the first that serves any number of rows."""
    kept: list[Form] = []
    for form in forms:
        kept.append(form)
        if form.most_rows is None:
            break
    return tuple(kept)


@dataclass(frozen=True)
class Launch:
    """One call that is launched: its place in the entry, the form, the indices of its buffers.

    barrier: it reads or overwrites what a call since the last barrier wrote, or overwrites what one read.
    """

    call: int
    form: Form
    buffers: tuple[int, ...]
    barrier: bool


def parse_dispatches(plan: Plan) -> Table:
    """The checked table of plan.json: every call has forms, one of which serves any step. Raises PlanInvalid."""
    fields = Fields(dict(plan.content), "plan", PlanInvalid)
    threads = fields.integer("threads", 1, 1024)
    table = fields.object("dispatches")
    operands = {name: len(buffers) for entry in plan.entries.values() for name, buffers in entry.calls}
    for entry in plan.entries.values():
        for name, buffers in entry.calls:
            if name not in table.value:
                raise table.fail(name, "is missing, an entry calls it")
            if len(buffers) != operands[name]:
                raise table.fail(name, "is called with different numbers of operands")
    # A plan of a part of the layers does not use all kernels of the table.
    forms = {name: _forms(table, name, count) for name, count in operands.items()}
    functions = [form.function for group in forms.values() for form in group]
    if len(set(functions)) != len(functions):
        raise fields.fail("dispatches", "two forms have the same function")
    return Table(threads, MappingProxyType(forms))


def _forms(table: Fields, name: str, operands: int) -> tuple[Form, ...]:
    rows = table.list(name)
    where = f"{table.where}.{name}"
    forms = tuple(_form(Fields(row, f"{where}[{i}]", PlanInvalid), operands) for i, row in enumerate(rows))
    if not any(form.most_rows is None and not form.requires for form in forms):
        raise table.fail(name, "has no form for any number of rows on any device")
    return forms


def _form(fields: Fields, operands: int) -> Form:
    function = fields.string("function")
    if not function.isidentifier() or not function.isascii():
        raise fields.fail("function", f"{function!r} is not an identifier")
    grid = fields.list("grid")
    if not 1 <= len(grid) <= AXES:
        raise fields.fail("grid", f"must have one to {AXES} axes")
    writes = fields.list("writes")
    if not all(type(index) is int and 0 <= index < max(operands, 1) for index in writes):
        raise fields.fail("writes", f"must hold positions of its {operands} operands")
    requires = fields.list("requires") if "requires" in fields.value else []
    if not all(isinstance(name, str) for name in requires):
        raise fields.fail("requires", "must be a list of strings")
    return Form(
        function,
        fields.integer("rows", T, R),
        None if fields.get("most_rows") is None else fields.integer("most_rows", 1, 2**31),
        tuple(_axis(fields, axis, i) for i, axis in enumerate(grid)),
        frozenset(writes),
        frozenset(requires),
    )


def _axis(fields: Fields, axis: Any, number: int) -> Axis:
    where = f"grid[{number}]"
    if not isinstance(axis, list) or len(axis) != 4:
        raise fields.fail(where, "must be [times, index, tile, most]")
    times, index, tile, most = axis
    if type(times) is not int or type(tile) is not int or not 0 <= times < 2**40 or not 1 <= tile < 2**31:
        raise fields.fail(where, "times and tile must be integers, tile at least 1")
    if index is not None and (type(index) is not int or index not in (T, R)):
        raise fields.fail(where, f"index must be null, {T} or {R}")
    if most is not None and (type(most) is not int or not 1 <= most < 2**31):
        raise fields.fail(where, "most must be null or an integer of at least 1")
    return Axis(times, ONE if index is None else index, tile, most)


class Steps:
    """The launches of one entry: the same for all steps with the same `key`, but for their grids."""

    def __init__(self, plan: Plan, table: Table, entry: Entry) -> None:
        self._plan, self._entry = plan, entry
        self._forms = [table.forms[name] for name, _ in entry.calls]
        # Where another form begins, or a grid is empty, some other launches are recorded.
        limits: tuple[set[int], set[int]] = ({0}, {0})
        for form in (form for forms in self._forms for form in forms):
            if form.most_rows is not None:
                limits[form.rows].add(form.most_rows)
        self._limits = [sorted(found) for found in limits]
        self._launches: dict[Key, tuple[Launch, ...]] = {}
        self._grids: dict[Key, _Grids] = {}

    @property
    def calls(self) -> int:
        return len(self._forms)

    def key(self, tokens: int, rows: int) -> Key:
        """What chooses the launches of a step: two steps with equal keys have the same."""
        return bisect_left(self._limits[T], tokens), bisect_left(self._limits[R], rows)

    def launches(self, tokens: int, rows: int) -> tuple[Launch, ...]:
        key = self.key(tokens, rows)
        if key not in self._launches:
            chosen = [_chosen(forms, (tokens, rows)) for forms in self._forms]
            self._launches[key] = _launches(self._plan, self._entry, chosen, tokens, rows)
            self._grids[key] = _Grids([launch.form for launch in self._launches[key]])
        return self._launches[key]

    def grids(self, tokens: int, rows: int, out: NDArray[np.uint32]) -> int:
        """Workgroups of each launch into the rows of `out` u32 [>= calls, 3]; returns the number of launches."""
        launches = self.launches(tokens, rows)
        self._grids[self.key(tokens, rows)].fill(tokens, rows, out[: len(launches)])
        return len(launches)

    def largest(self) -> tuple[int, int, int]:
        """The largest grid of any step, axis by axis."""
        bounds = self._plan.bounds
        found = [1] * AXES
        for form in (form for forms in self._forms for form in forms):
            tokens = bounds.T if form.most_rows is None or form.rows != T else min(bounds.T, form.most_rows)
            for i, axis in enumerate(form.grid):
                found[i] = max(found[i], axis.groups(tokens, bounds.R))
        return found[0], found[1], found[2]


class _Grids:
    """The formulas of many grids as arrays, so that a step computes them at once."""

    def __init__(self, forms: Sequence[Form]) -> None:
        one = Axis(1, ONE, 1, None)
        axes = [axis for form in forms for axis in (*form.grid, *[one] * (AXES - len(form.grid)))]
        shape = (len(forms), AXES)
        self._times = np.array([axis.times for axis in axes], np.int64).reshape(shape)
        self._counted = np.array([axis.counted for axis in axes], np.int64).reshape(shape)
        self._tile = np.array([axis.tile for axis in axes], np.int64).reshape(shape)
        most = [np.iinfo(np.int64).max if axis.most is None else axis.most for axis in axes]
        self._most = np.array(most, np.int64).reshape(shape)

    def fill(self, tokens: int, rows: int, out: NDArray[np.uint32]) -> None:
        counts = np.array([tokens, rows, 1], np.int64)[self._counted]
        out[:] = np.minimum(-(-self._times * counts // self._tile), self._most)


def _chosen(forms: tuple[Form, ...], counts: tuple[int, int]) -> Form:
    return next(form for form in forms if form.most_rows is None or counts[form.rows] <= form.most_rows)


def _launches(plan: Plan, entry: Entry, chosen: Sequence[Form], tokens: int, rows: int) -> tuple[Launch, ...]:
    launches, written, read = [], list[_Span](), list[_Span]()
    for number, (form, (_, buffers)) in enumerate(zip(chosen, entry.calls, strict=True)):
        if any(axis.groups(tokens, rows) == 0 for axis in form.grid):
            continue
        spans = [_span(plan, index) for index in buffers]
        writes = [span for i, span in enumerate(spans) if i in form.writes]
        barrier = _touch(spans, written) or _touch(writes, read)
        if barrier:
            written, read = [], []
        written += writes
        read += spans
        launches.append(Launch(number, form, buffers, barrier))
    return tuple(launches)


_Span = tuple[str, int, int]  # memory, first byte, byte behind the last


def _span(plan: Plan, index: int) -> _Span:
    """The memory of a buffer: results share the arena, all else is alone in its own."""
    buffer = plan.buffers[index]
    if buffer.kind == "arena":
        return "arena", buffer.offset, buffer.offset + buffer.size * ELEMENT_BYTES[buffer.dtype]
    return buffer.name, 0, 1


def _touch(spans: Sequence[_Span], others: Sequence[_Span]) -> bool:
    return any(a[0] == b[0] and a[1] < b[2] and b[1] < a[2] for a in spans for b in others)
