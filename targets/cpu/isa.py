"""What a kernel builder must know of an instruction set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class IsaLevel:
    """One instruction-set level kernels are compiled for.

    mcpu, mattr: what LLVM is told. requires: flags of /proc/cpuinfo a machine must have. dot: name of the int8 dot
    product in `intrinsics.DOT4`. lanes: 32-bit lanes of a vector register; 16 rows of a weight take 16/lanes registers.
    cflags: what a C compiler is told, for the routines that measure the level's limits.
    """

    name: str
    mcpu: str
    requires: tuple[str, ...]
    dot: str
    lanes: int
    mattr: tuple[str, ...] = ()
    cflags: tuple[str, ...] = ()

    def missing(self, cpu_flags: frozenset[str]) -> tuple[str, ...]:
        """The required flags that `cpu_flags` lacks."""
        return tuple(flag for flag in self.requires if flag not in cpu_flags)


def host_cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Feature flags of the first CPU of this machine; empty where there is no /proc/cpuinfo."""
    if not cpuinfo.exists():
        return frozenset()
    for line in cpuinfo.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()
