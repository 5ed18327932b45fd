"""From a plan of kernel calls to the libraries of kernels that it needs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from dsv3c.compiler.core.blame import blame, building
from dsv3c.compiler.core.crossing import materialize_from
from dsv3c.compiler.core.target import Emission, EntryGraph, Planned
from dsv3c.compiler.errors import is_fault
from dsv3c.targets.calls.spec_text import check_level, parse_spec
from dsv3c.targets.cpu.children import in_children
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels import SPECS, build
from dsv3c.targets.cpu.kernels.frame import PrimFunc
from dsv3c.targets.cpu.library import compile_object, compile_support, link_library, support_objects
from dsv3c.targets.cpu.native import check_native, write_native
from dsv3c.targets.cpu.object_cache import ObjectCache
from dsv3c.targets.cpu.relax_module import write_modules
from dsv3c.targets.cpu.units import ObjectUnit, compiled_once
from dsv3c.targets.link.platforms import find_compiler_for


def emit(planned: Planned, levels: Iterable[IsaLevel], cache: ObjectCache | None = None) -> Emission:
    """The kernels of a plan, to be built for each level, or taken from the cache. Raises NoCCompiler, NoCrossCompiler.

    Each is compiled on its own: that takes as long as all at once, and a model has some in common with others.
    """
    entries, kernels = planned.graphs, planned.kernels
    levels = tuple(levels)
    find_compiler_for(levels[0].platform)
    described = tuple(
        {
            "name": level.name,
            "requires": list(level.requires),
            "file": f"kernels/{level.library}",
            "tuning": level.tuning.to_json(),
            **_prefill_from(level, entries),
        }
        for level in levels
    )

    def write_kernels(folder: Path, advance: Callable[[int], None], plan_sha256: str | None = None) -> None:
        folder.mkdir()

        built = [{name: _built(spec, level) for spec, name in kernels.items()} for level in levels]
        units, specs = compiled_once(levels, built), {name: spec for spec, name in kernels.items()}
        with tempfile.TemporaryDirectory() as objects:
            files = [_files(unit, Path(objects), number) for number, unit in enumerate(units)]

            def compiled(number: int) -> None:
                if number < len(units):
                    advance(len(units[number].functions) * len(units[number].users))

            def blame_kernel(number: int, error: Exception) -> None:
                if number < len(units):
                    _blame_kernel(units[number], specs, files[number], error)

            def link(level: IsaLevel) -> None:
                own = [found.values() for unit, found in zip(units, files, strict=True) if level in unit.users]
                link_library([*support_objects(Path(objects)), *chain(*own)], level, folder / level.library)

            compiling = [partial(_compile, *pair, cache) for pair in zip(units, files, strict=True)]
            support = partial(compile_support, levels[0].platform, Path(objects), plan_sha256)
            in_children([*compiling, support], compiled, Path(objects), blame_kernel)
            in_children([partial(link, level) for level in levels], lambda number: None, folder)

    def write_tvm(folder: Path) -> None:
        write_modules(folder / "tvm", entries, planned.bounds, kernels, planned.recipes, levels)

    def write_c(folder: Path) -> tuple[str, ...]:
        return write_native(folder, levels[0].platform)

    extras = {"native": write_c, "tvm": write_tvm}
    return Emission(
        described,
        write_kernels,
        extras,
        kernel_files=len(kernels) * len(levels),
        checks={"native": check_native},
        sealed=lambda sha256: partial(write_kernels, plan_sha256=sha256),
    )


def build_kernel(text: str, levels: Sequence[IsaLevel], name: str | None, folder: Path) -> None:
    """The object file of the kernel that `text` names in `folder`, for the level of this name, None for the lowest.
    Raises BadSpecError, UnknownLevelError, and what `in_children` does."""
    spec, named = parse_spec(text, SPECS), {level.name: level for level in levels}
    if name is not None:
        check_level(name, list(named))
    level = levels[0] if name is None else named[name]
    job = partial(compile_object, {"kernel": build(spec, level)}, level, folder / "kernel.o")
    in_children([job], lambda number: None, folder)


def _built(spec: object, level: IsaLevel) -> PrimFunc:
    with building(spec, level.name):
        return build(spec, level)


def _files(unit: ObjectUnit, folder: Path, number: int) -> dict[str, Path]:
    """Where the object of each kernel goes; names are the same at other levels."""
    return {name: folder / f"{number}-{name}.o" for name in unit.functions}


def _compile(unit: ObjectUnit, files: Mapping[str, Path], cache: ObjectCache | None) -> None:
    compile = compile_object if cache is None else cache.compile_object
    for name, file in files.items():
        compile({name: unit.functions[name]}, unit.level, file)


def _blame_kernel(unit: ObjectUnit, specs: Mapping[str, object], files: Mapping[str, Path], error: Exception) -> None:
    """Note which kernel of the unit it is that LLVM does not compile, if it is the kernel: it fails again alone."""
    name = next((name for name, file in files.items() if not file.exists()), None)
    if name is None or not is_fault(error):
        return
    again = partial(compile_object, {name: unit.functions[name]}, unit.level, files[name])
    try:
        in_children([again], lambda number: None, files[name].parent)
    except Exception:
        blame(error, specs[name], unit.level.name)


def _prefill_from(level: IsaLevel, entries: Mapping[str, EntryGraph]) -> dict[str, int]:
    """Where materialised attention begins to pay at a level whose kernels are not equally fast."""
    values = (value for entry in entries.values() for value in entry.graph.values())
    found = next((value for value in values if value.op == "mla_materialized"), None)
    if found is None:
        return {}
    _, q_pe, cache, w_uk, w_uv, *_ = found.inputs
    rebuild_rate = level.rebuild_rate if found.attrs.get("group") else 1.0
    if cache.dtype != "bf16" or level.absorbed_rate == rebuild_rate == 1.0:
        return {}
    nope, rank, rope, v = (int(dim) for dim in (*w_uk.shape[1:], q_pe.shape[-1], w_uv.shape[1]))
    return {"prefill_min_tokens": materialize_from(rank, nope, rope, v, level.absorbed_rate, rebuild_rate)}
