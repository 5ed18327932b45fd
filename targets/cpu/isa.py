"""What a kernel builder must know of an instruction set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dsv3c.targets.calls.spec_text import check_level
from dsv3c.targets.cpu.tuning import RECORDS, Tuning, read_record, tuning_of
from dsv3c.targets.link.platforms import Platform


@dataclass(frozen=True)
class IsaLevel:
    """One instruction-set level kernels are compiled for.

    mcpu, mattr: what LLVM is told. requires: flags of /proc/cpuinfo a machine must have. dot: name of the int8 dot
    product in `intrinsics.DOT4`. lanes: 32-bit lanes of a vector register; 16 rows of a weight take 16/lanes registers.
    dot2, mmla: names of the bfloat16 dot product in `intrinsics.DOT2` and of the product of int8 matrices in
    `intrinsics.MMLA`, if the level has them.
    matrix: name of the tile registers in `tiles.TILES` that take many rows of integers, if the level has them.
    cflags: what a C compiler is told, for the routines that measure the level's limits. tuning: the measured numbers of
    its kernels. absorbed_rate, rebuild_rate: operations a second of absorbed attention over a bfloat16 cache,
    and of rebuilding keys and values by integer products, as multiples of those of materialised attention's products of
    floats; they decide from how many tokens on a step takes the latter. platform: the system it is built for; None is
    this machine.
    """

    name: str
    mcpu: str
    requires: tuple[str, ...]
    dot: str
    lanes: int
    mattr: tuple[str, ...] = ()
    dot2: str | None = None
    mmla: str | None = None
    matrix: str | None = None
    cflags: tuple[str, ...] = ()
    absorbed_rate: float = 1.0
    rebuild_rate: float = 1.0
    tuning: Tuning = field(default_factory=Tuning)
    platform: Platform | None = None

    @property
    def library(self) -> str:
        """File name of the level's kernel library."""
        return self.name + (self.platform.suffix if self.platform else ".so")

    def tuned(self, tuning: Tuning) -> IsaLevel:
        """The same level with other numbers."""
        return replace(self, tuning=tuning)

    def missing(self, cpu_flags: frozenset[str]) -> tuple[str, ...]:
        """The required flags that `cpu_flags` lacks."""
        return tuple(flag for flag in self.requires if flag not in cpu_flags)


def level_names(option: str | None, levels: Iterable[IsaLevel]) -> tuple[str, ...]:
    """The names in the target option `levels`, with a plus between two; none where it is not given.

    Raises UnknownLevelError for one that is not among the levels.
    """
    names, known = () if option is None else tuple(option.split("+")), [level.name for level in levels]
    for name in names:
        check_level(name, known)
    return names


def of_names(levels: Sequence[IsaLevel], names: Sequence[str]) -> tuple[IsaLevel, ...]:
    """The levels of these names, in the levels' order; all for no name."""
    return tuple(level for level in levels if not names or level.name in names)


def tuned_levels(levels: Iterable[IsaLevel], cpu: str, folder: Path = RECORDS) -> tuple[IsaLevel, ...]:
    """The levels, those that the CPU's record was measured at with its numbers. Raises BadTuningRecord."""
    record = read_record(cpu, folder)
    if record is None:
        return tuple(levels)
    return tuple(level.tuned(tuning_of(record, level.name, level.tuning)) for level in levels)
