"""The table of dispatches in the plan of a GPU: how each kernel is launched, by the sizes of a step.

plan.json has it as

    "threads": 128                     threads of every workgroup
    "dispatches": {"linear_0": [       by kernel, its forms; the first that serves the rows of the step is launched
        {"function": "linear_0_0",     the kernel's name in the binary
         "rows": 0, "most_rows": 1,    it serves control[rows] <= most_rows, any number if null
         "grid": [[32, null, 1, null], [1, 0, 4, null]],
         "writes": [4]}, …], …}        the operands it writes; all others it reads at most

An axis [times, index, tile, most] of a grid has ceil(times * control[index] / tile) workgroups (control[null] is 1), at
most `most`; axes that are not there have one. A form may have `requires`: names of capabilities without which a device
passes it over. What follows from the table for a step is in dsv3c.runtime.devices.dispatch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dsv3c.runtime.artifact.fields import Fields
from dsv3c.runtime.errors import PlanInvalid

AXES = 3
T, R, ONE = 0, 1, 2  # what an axis counts: tokens, rows with logits, or nothing


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

    def to_json(self) -> list[int | None]:
        return [self.times, None if self.counted == ONE else self.counted, self.tile, self.most]


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
    requires: frozenset[str] = frozenset()

    def to_json(self) -> dict[str, Any]:
        stated = {
            "function": self.function,
            "rows": self.rows,
            "most_rows": self.most_rows,
            "grid": [axis.to_json() for axis in self.grid],
            "writes": sorted(self.writes),
        }
        return stated | ({"requires": sorted(self.requires)} if self.requires else {})


@dataclass(frozen=True)
class Table:
    """threads: of every workgroup. forms: by kernel; the first that serves a step is launched."""

    threads: int
    forms: Mapping[str, tuple[Form, ...]]

    def to_json(self) -> dict[str, Any]:
        """Its part of plan.json."""
        dispatches = {name: [form.to_json() for form in forms] for name, forms in self.forms.items()}
        return {"threads": self.threads, "dispatches": dispatches}


def parse_table(plan: Fields, operands: Mapping[str, int]) -> Table:
    """The checked table of plan.json for kernels with so many operands: each has forms, one of which serves any step on
    any device. Raises PlanInvalid."""
    threads = plan.integer("threads", 1, 1024)
    table = plan.object("dispatches")
    for name in operands:
        if name not in table.value:
            raise table.fail(name, "is missing, an entry calls it")
    forms = {name: _forms(table, name, operands[name]) for name in table.value if name in operands}
    functions = [form.function for group in forms.values() for form in group]
    if len(set(functions)) != len(functions):
        raise plan.fail("dispatches", "two forms have the same function")
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
