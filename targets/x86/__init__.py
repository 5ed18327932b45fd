"""x86-64 CPUs: AVX2, AVX-512, VNNI, bfloat16 and AMX levels in one artifact; the runtime picks by CPU features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dsv3c.compiler.core.ir import Value
from dsv3c.compiler.core.target import Emission, EntryGraph, Planned
from dsv3c.compiler.formats.table import WeightFormat

if TYPE_CHECKING:
    from dsv3c.targets.cpu.isa import IsaLevel
    from dsv3c.targets.cpu.object_cache import ObjectCache


@dataclass(frozen=True)
class X86:
    """The x86 target. TVM is imported when the first kernel is built.

    cpu: the CPU whose tuning record the kernels follow; None takes the record of this machine, if there is one.
    only: the names of the levels to build kernels for; without any, all. cache: of compiled kernels.
    """

    cpu: str | None = None
    only: tuple[str, ...] = ()
    cache: ObjectCache | None = None
    name: str = "x86"
    layout: str = "rows16"
    integer_activations: bool = True
    cache_dtypes: tuple[str, ...] = ("bf16", "f32", "int8", "fp8")

    def configured(self, options: Mapping[str, str]) -> X86:
        """Raises UnknownTuningRecord for a CPU without a record, UnknownLevelError."""
        from dsv3c.targets.cpu.isa import level_names
        from dsv3c.targets.cpu.tuning import check_known
        from dsv3c.targets.x86.levels import LEVELS

        cpu = options.get("cpu")
        if cpu is not None:
            check_known(cpu)
        return replace(self, cpu=cpu, only=level_names(options.get("levels"), LEVELS))

    def supports(self, format: WeightFormat, op: str) -> bool:
        from dsv3c.targets.cpu.kernels import supports

        return supports(format, op)

    def scratch_bytes(self, value: Value, bounds: Mapping[str, int]) -> int:
        from dsv3c.targets.cpu.plan import scratch_bytes

        return scratch_bytes(value, bounds)

    def plan(self, entries: Mapping[str, EntryGraph], bounds: Mapping[str, int]) -> Planned:
        from dsv3c.targets.cpu.plan import plan

        return plan(entries, bounds)

    def emit(self, planned: Planned) -> Emission:
        """Raises NoCCompiler, NoCrossCompiler."""
        from dsv3c.targets.cpu.emit import emit

        return emit(planned, self._tuned(), self.cache)

    def caching(self, folder: Path) -> X86:
        from dsv3c.targets.cpu.object_cache import ObjectCache

        return replace(self, cache=ObjectCache.at(folder))

    def build_kernel(self, spec: str, level: str | None, folder: Path) -> None:
        from dsv3c.targets.cpu.emit import build_kernel

        build_kernel(spec, self._tuned(), level, folder)

    def levels(self) -> tuple[IsaLevel, ...]:
        """What kernels are built for, with the numbers that hold for every CPU; lowest first."""
        from dsv3c.targets.cpu.isa import of_names
        from dsv3c.targets.x86.levels import LEVELS

        return of_names(LEVELS, self.only)

    def _tuned(self) -> tuple[IsaLevel, ...]:
        from dsv3c.targets.cpu.families import cpu_name
        from dsv3c.targets.cpu.isa import tuned_levels

        return tuned_levels(self.levels(), self.cpu or cpu_name())


TARGET = X86()
