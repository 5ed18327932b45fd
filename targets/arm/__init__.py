"""AArch64 CPUs on Linux and macOS: NEON, dot product and matrix product levels; the runtime picks by CPU features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dsv3c.compiler.core.ir import Value
from dsv3c.compiler.core.target import Emission, EntryGraph, Planned
from dsv3c.compiler.errors import Dsv3cError
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets.link.platforms import ARM_LINUX, ARM_MACOS

if TYPE_CHECKING:
    from dsv3c.targets.cpu.isa import IsaLevel
    from dsv3c.targets.cpu.object_cache import ObjectCache

_SYSTEMS = {"linux": ARM_LINUX, "macos": ARM_MACOS}


class UnknownArmCpu(Dsv3cError):
    message = "target arm knows no CPU {cpu!r}"
    hint = "the known ones are {known}; generic is right for all of them"


class UnknownArmSystem(Dsv3cError):
    message = "target arm has no kernels for the system {system!r}"
    hint = "the known ones are {known}"


@dataclass(frozen=True)
class Arm:
    """The ARM target. TVM is imported when the first kernel is built.

    cpu: decides which levels the artifact can have and whose tuning record the kernels follow. only: the names of those
    that it has; without any, all. system: linux or macos. cache: of compiled kernels.
    """

    cpu: str = "generic"
    system: str = "linux"
    only: tuple[str, ...] = ()
    cache: ObjectCache | None = None
    name: str = "arm"
    layout: str = "rows16"
    integer_activations: bool = True
    cache_dtypes: tuple[str, ...] = ("bf16", "f32", "int8", "fp8")

    def configured(self, options: Mapping[str, str]) -> Arm:
        """Apple's CPUs mean macOS unless `os` says otherwise. Raises UnknownArmCpu, UnknownArmSystem, and
        UnknownLevelError, also for a level that the CPU does not run."""
        from dsv3c.targets.arm.levels import CPUS, levels_of
        from dsv3c.targets.cpu.isa import level_names

        cpu = options.get("cpu", "generic")
        if cpu not in CPUS:
            raise UnknownArmCpu(cpu=cpu, known=", ".join(CPUS))
        system = options.get("os", "macos" if cpu.startswith("apple-") else "linux")
        if system not in _SYSTEMS:
            raise UnknownArmSystem(system=system, known=", ".join(_SYSTEMS))
        return replace(self, cpu=cpu, system=system, only=level_names(options.get("levels"), levels_of(cpu)))

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

    def caching(self, folder: Path) -> Arm:
        from dsv3c.targets.cpu.object_cache import ObjectCache

        return replace(self, cache=ObjectCache.at(folder))

    def build_kernel(self, spec: str, level: str | None, folder: Path) -> None:
        from dsv3c.targets.cpu.emit import build_kernel

        build_kernel(spec, self._tuned(), level, folder)

    def levels(self) -> tuple[IsaLevel, ...]:
        """What kernels are built for, with the numbers that hold for every CPU; lowest first."""
        from dsv3c.targets.arm.levels import levels_of
        from dsv3c.targets.cpu.isa import of_names

        chosen = of_names(levels_of(self.cpu), self.only)
        return tuple(replace(level, platform=_SYSTEMS[self.system]) for level in chosen)

    def _tuned(self) -> tuple[IsaLevel, ...]:
        from dsv3c.targets.cpu.isa import tuned_levels

        return tuned_levels(self.levels(), self.cpu)


TARGET = Arm()
