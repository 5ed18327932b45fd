"""What the targets for CPUs have in common: a target adds its levels and the options that choose among them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from dsv3c.compiler.core.ir import Value
from dsv3c.compiler.core.target import Emission, EntryGraph, Planned
from dsv3c.compiler.formats.table import WeightFormat

if TYPE_CHECKING:
    from dsv3c.targets.cpu.isa import IsaLevel
    from dsv3c.targets.cpu.object_cache import ObjectCache


@dataclass(frozen=True, kw_only=True)
class CpuTarget(ABC):
    """A target whose kernels are those of targets.cpu. TVM is imported when the first kernel is built.

    only: the names of the levels to build kernels for; without any, all. cache: of compiled kernels.
    """

    name: str
    only: tuple[str, ...] = ()
    cache: ObjectCache | None = None
    layout: str = "rows16"
    integer_activations: bool = True
    cache_dtypes: tuple[str, ...] = ("bf16", "f32", "int8", "fp8")

    @abstractmethod
    def levels(self) -> tuple[IsaLevel, ...]:
        """What kernels are built for, with the numbers that hold for every CPU; lowest first."""

    @abstractmethod
    def tuned_levels(self) -> tuple[IsaLevel, ...]:
        """The same with the numbers of the tuning record that the target's `cpu` means."""

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

        return emit(planned, self.tuned_levels(), self.cache)

    def build_kernel(self, spec: str, level: str | None, folder: Path) -> None:
        from dsv3c.targets.cpu.emit import build_kernel

        build_kernel(spec, self.tuned_levels(), level, folder)

    def caching(self, folder: Path) -> Self:
        from dsv3c.targets.cpu.object_cache import ObjectCache

        return replace(self, cache=ObjectCache.at(folder))
