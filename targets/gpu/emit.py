"""From a plan of GPU kernel calls to the kernels in all their forms, and the table of dispatches.

Which operands a kernel writes is not stated but read from its TIR: the table is made of what was built.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from dsv3c.compiler.core.blame import blame, building, culprit, failed_kernel
from dsv3c.compiler.core.target import Emission, Planned
from dsv3c.compiler.errors import is_fault
from dsv3c.runtime.artifact.dispatches import Form, Table
from dsv3c.targets.calls.spec_text import check_level, parse_spec
from dsv3c.targets.gpu.capabilities import NOTHING, Capabilities
from dsv3c.targets.gpu.kernels import SPECS, stages, variants
from dsv3c.targets.gpu.kernels.frame import THREADS, Variant

Builder = Callable[[], Any]


@dataclass(frozen=True)
class Backend:
    """How a GPU target makes binaries.

    compile(functions, folder, advance): PrimFuncs by name, each to be built by a call without arguments, become files
    in the new `folder`; advance(1) after each function. levels: the manifest's rows of binaries. facts: further entries
    of the manifest's `target`. capabilities: what forms of kernels may require of a device.
    """

    compile: Callable[[Mapping[str, Builder], Path, Callable[[int], None]], None]
    levels: tuple[Mapping[str, Any], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    capabilities: Capabilities = NOTHING


def emit(planned: Planned, backend: Backend) -> Emission:
    """The kernels of a plan in all their forms, and how these are launched."""
    functions: dict[str, Builder] = {}
    functions_of: dict[Any, dict[str, Builder]] = {}
    table: dict[str, tuple[Form, ...]] = {}
    for spec, name in planned.kernels.items():
        forms = {f"{name}_{number}": form for number, form in enumerate(variants(spec, backend.capabilities))}
        builders: dict[str, Builder] = {function: cache(_building(spec, form)) for function, form in forms.items()}
        functions_of[spec] = builders
        table[name] = tuple(_form(function, form, builders[function]) for function, form in forms.items())
        functions |= builders

    def write_kernels(folder: Path, advance: Callable[[int], None]) -> None:
        folder.mkdir()
        try:
            backend.compile(functions, folder, advance)
        except Exception as error:
            _blame_kernel(functions_of, backend, error)
            raise

    return Emission(
        backend.levels,
        write_kernels,
        facts=backend.facts,
        kernel_files=len(functions),
        dispatches=Table(THREADS, table),
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


def _form(function: str, form: Variant, build: Builder) -> Form:
    grid, writes = tuple(extent.axis() for extent in form.grid), frozenset(written(build()))
    return Form(function, form.rows.index, form.most_rows, grid, writes, form.requires)


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
