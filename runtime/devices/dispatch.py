"""What follows for one step from the table of dispatches of a GPU artifact.

The table has, by kernel, the forms that its binary has. A step's token and row counts T and R decide which form of each
kernel is launched and with how many workgroups, so that the host knows both without asking the device. Calls whose grid
is empty are not launched.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.dispatches import AXES, ONE, Axis, Form, R, T, Table
from dsv3c.runtime.artifact.plan import ELEMENT_BYTES, Entry, Plan
from dsv3c.runtime.devices.cpu.features import require_known, unwanted
from dsv3c.runtime.errors import PlanInvalid

Key = tuple[int, int]


def usable(table: Table, capabilities: Collection[str]) -> Table:
    """Only the forms that a device with these capabilities runs, but for unwanted ones; each kernel has one that needs
    none. Raises UnknownCapability."""
    require_known({name for forms in table.forms.values() for form in forms for name in form.requires})
    there = frozenset(capabilities) - unwanted()
    kept = {kernel: _reached(form for form in forms if form.requires <= there) for kernel, forms in table.forms.items()}
    return Table(table.threads, MappingProxyType(kept))


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


def table_of(plan: Plan) -> Table:
    """How the kernels that a plan calls are launched. Raises PlanInvalid for a plan that does not say it."""
    if plan.dispatches is None:
        raise PlanInvalid(where="plan.dispatches", reason="is missing")
    # A plan of a part of the layers does not call all kernels of the table.
    called = {name for entry in plan.entries.values() for name, _ in entry.calls}
    forms = {name: forms for name, forms in plan.dispatches.forms.items() if name in called}
    return Table(plan.dispatches.threads, MappingProxyType(forms))


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
