"""AArch64 CPUs on Linux and macOS: NEON, dot product and matrix product levels; the runtime picks by CPU features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dsv3c.compiler.errors import Dsv3cError
from dsv3c.targets.cpu.target import CpuTarget
from dsv3c.targets.link.platforms import ARM_LINUX, ARM_MACOS

if TYPE_CHECKING:
    from dsv3c.targets.cpu.isa import IsaLevel

_SYSTEMS = {"linux": ARM_LINUX, "macos": ARM_MACOS}


class UnknownArmCpu(Dsv3cError):
    message = "target arm knows no CPU {cpu!r}"
    hint = "the known ones are {known}; generic is right for all of them"


class UnknownArmSystem(Dsv3cError):
    message = "target arm has no kernels for the system {system!r}"
    hint = "the known ones are {known}"


@dataclass(frozen=True, kw_only=True)
class Arm(CpuTarget):
    """cpu: decides which levels the artifact can have and whose tuning record the kernels follow. system: linux or
    macos."""

    name: str = "arm"
    cpu: str = "generic"
    system: str = "linux"

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

    def levels(self) -> tuple[IsaLevel, ...]:
        from dsv3c.targets.arm.levels import levels_of
        from dsv3c.targets.cpu.isa import of_names

        chosen = of_names(levels_of(self.cpu), self.only)
        return tuple(replace(level, platform=_SYSTEMS[self.system]) for level in chosen)

    def tuned_levels(self) -> tuple[IsaLevel, ...]:
        from dsv3c.targets.cpu.isa import tuned_levels

        return tuned_levels(self.levels(), self.cpu)


TARGET = Arm()
