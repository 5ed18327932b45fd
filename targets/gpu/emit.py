"""From planned graphs to a plan of GPU kernel calls, the table of dispatches, and the kernels to compile.

plan.json has, besides what plans of CPU targets have:

    "threads": 128                     threads of every workgroup
    "dispatches": {"linear_0": [       by kernel, its forms; the first that serves the rows of the step is launched
        {"function": "linear_0_0",     the kernel's name in the binary
         "rows": 0, "most_rows": 1,    it serves control[rows] <= most_rows, any number if null
         "grid": [[32, null, 1, null], [1, 0, 4, null]],
         "writes": [4]}, …], …}        the operands it writes; all others it reads at most

An axis [times, index, tile, most] of a grid has ceil(times * control[index] / tile) workgroups (control[null] is 1), at
most `most`; axes that are not there have one. A call whose grid is empty is not launched. A form may have `requires`:
names of capabilities without which a device passes it over; see dsv3c.runtime.devices.dispatch, which reads all this.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from dsv3c.compiler.core.blame import blame, building, culprit, failed_kernel
from dsv3c.compiler.core.ir import Value
from dsv3c.compiler.core.target import Emission, Entry
from dsv3c.compiler.errors import is_fault
from dsv3c.targets.calls.costs import cost
from dsv3c.targets.calls.plan import Calls, Plan
from dsv3c.targets.calls.spec_text import check_level, parse_spec
from dsv3c.targets.gpu.capabilities import NOTHING, Capabilities
from dsv3c.targets.gpu.kernels import SPECS, operands, stages, variants
from dsv3c.targets.gpu.kernels.frame import THREADS, Variant
from dsv3c.targets.gpu.kernels.parts import Part, units
from dsv3c.targets.gpu.lower import lower
from dsv3c.targets.gpu.sampling import add_sampling

Builder = Callable[[], Any]
MOST_BINDING = 2047 << 20  # bytes: kernels count the elements of an operand, a byte or more each, in 32 bits
_SHARED = {"row_flops", "table_rows"}  # of a cost: what the parts of a weight share


@dataclass(frozen=True)
class Backend:
    """How a GPU target makes binaries.

    compile(functions, folder, advance): PrimFuncs by name, each to be built by a call without arguments, become files
    in the new `folder`; advance(1) after each function. levels: the manifest's rows of binaries. facts: further entries
    of the manifest's `target`. max_binding: bytes of a weight that a kernel can be given as one operand. capabilities:
    what forms of kernels may require of a device.
    """

    compile: Callable[[Mapping[str, Builder], Path, Callable[[int], None]], None]
    levels: tuple[Mapping[str, Any], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    max_binding: int = MOST_BINDING
    capabilities: Capabilities = NOTHING


def emit(entries: Mapping[str, Entry], bounds: Mapping[str, int], backend: Backend) -> Emission:
    """The plan of all entries over one arena, with the table of dispatches, and the kernels they share."""
    plan = Plan(bounds, _calls(backend.max_binding))
    content = plan.content(entries)
    content |= add_sampling(plan, content)
    functions: dict[str, Builder] = {}
    functions_of: dict[Any, dict[str, Builder]] = {}
    dispatches: dict[str, list[dict[str, Any]]] = {}
    for spec, name in plan.kernels.items():
        forms = {f"{name}_{number}": form for number, form in enumerate(variants(spec, backend.capabilities))}
        builders: dict[str, Builder] = {function: cache(_building(spec, form)) for function, form in forms.items()}
        functions_of[spec] = builders
        dispatches[name] = [_dispatch(function, form, builders[function]) for function, form in forms.items()]
        functions |= builders
    costs = {name: stated for spec, name in plan.kernels.items() if (stated := _cost(spec)) is not None}
    content |= {"costs": costs, "threads": THREADS, "dispatches": dispatches}

    def write_kernels(folder: Path, advance: Callable[[int], None]) -> None:
        folder.mkdir()
        try:
            backend.compile(functions, folder, advance)
        except Exception as error:
            _blame_kernel(functions_of, backend, error)
            raise

    return Emission(
        content, plan.recipes, backend.levels, write_kernels, facts=backend.facts, kernel_files=len(functions)
    )


def build_kernel(text: str, backend: Backend, level: str | None, folder: Path) -> None:
    """All forms of the kernel that `text` names, or of those that an operation takes, as files in `folder`; binaries
    of all levels are made together. Raises BadSpecError, UnknownLevelError, and what the backend does."""
    if level is not None:
        check_level(level, [row["name"] for row in backend.levels])
    found = [form for stage in stages(parse_spec(text, SPECS)) for form in variants(stage, backend.capabilities)]
    backend.compile({f"kernel_{number}": form.build for number, form in enumerate(found)}, folder, lambda done: None)


def _building(spec: Any, form: Variant) -> Builder:
    def build() -> Any:
        with building(spec):
            return form.build()

    return build


def _blame_kernel(functions_of: Mapping[Any, Mapping[str, Builder]], backend: Backend, error: Exception) -> None:
    """Note which kernel it is that is not compiled."""

    def fails(specs: Sequence[Any]) -> bool:
        functions = {name: build for spec in specs for name, build in functions_of[spec].items()}
        with tempfile.TemporaryDirectory() as folder:
            try:
                backend.compile(functions, Path(folder), lambda done: None)
            except Exception:
                return True
        return False

    if is_fault(error) and failed_kernel(error) is None and (spec := culprit(list(functions_of), fails)) is not None:
        blame(error, spec)


def scratch_bytes(value: Value, bounds: Mapping[str, int]) -> int:
    """Bytes of the scratch operand that the kernels of a value share, 0 without one."""
    return _calls(MOST_BINDING).scratch_bytes(value, bounds)


def _calls(max_binding: int) -> Calls:
    return Calls(lambda value, bounds: lower(value, bounds, max_binding), operands)


def _dispatch(function: str, form: Variant, build: Builder) -> dict[str, Any]:
    stated = {
        "function": function,
        "rows": form.rows.index,
        "most_rows": form.most_rows,
        "grid": [extent.to_json() for extent in form.grid],
        "writes": written(build()),
    }
    return stated | ({"requires": sorted(form.requires)} if form.requires else {})


def written(function: Any) -> list[int]:
    """Positions of the parameters that a PrimFunc stores to."""
    stored = set(_stores(function.body))
    return [position for position, param in enumerate(function.params) if param in stored]


def _stores(node: Any) -> Iterator[Any]:
    """The buffer of every store below a statement."""
    if type(node).__name__ == "BufferStore":
        yield node.buffer
    for part in getattr(node, "seq", ()):
        yield from _stores(part)
    for name in ("block", "body", "then_case", "else_case"):
        part = getattr(node, name, None)
        if part is not None:
            yield from _stores(part)


def _cost(spec: Any) -> dict[str, Any] | None:
    """What a kernel costs; the first of the stages of an operation bears all of it, since it does the products."""
    if isinstance(spec, Part):
        stated = _cost(spec.whole)
        return stated and stated | {
            key: stated[key] * spec.count // units(spec.whole) for key in _SHARED & stated.keys()
        }
    operation = getattr(spec, "spec", spec)
    return cost(operation) if stages(operation)[0] == spec else None
