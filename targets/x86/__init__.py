"""x86-64 CPUs: AVX2, AVX-512, VNNI, bfloat16 and AMX levels in one artifact; the runtime picks by CPU features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dsv3c.targets.cpu.target import CpuTarget

if TYPE_CHECKING:
    from dsv3c.targets.cpu.isa import IsaLevel


@dataclass(frozen=True, kw_only=True)
class X86(CpuTarget):
    """cpu: the CPU whose tuning record the kernels follow; None takes the record of this machine, if there is one."""

    name: str = "x86"
    cpu: str | None = None

    def configured(self, options: Mapping[str, str]) -> X86:
        """Raises UnknownTuningRecord for a CPU without a record, UnknownLevelError."""
        from dsv3c.targets.cpu.isa import level_names
        from dsv3c.targets.cpu.tuning import check_known
        from dsv3c.targets.x86.levels import LEVELS

        cpu = options.get("cpu")
        if cpu is not None:
            check_known(cpu)
        return replace(self, cpu=cpu, only=level_names(options.get("levels"), LEVELS))

    def levels(self) -> tuple[IsaLevel, ...]:
        from dsv3c.targets.cpu.isa import of_names
        from dsv3c.targets.x86.levels import LEVELS

        return of_names(LEVELS, self.only)

    def tuned_levels(self) -> tuple[IsaLevel, ...]:
        from dsv3c.targets.cpu.families import cpu_name
        from dsv3c.targets.cpu.isa import tuned_levels

        return tuned_levels(self.levels(), self.cpu or cpu_name())


TARGET = X86()
