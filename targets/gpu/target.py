"""What the targets for GPUs have in common: a target adds its backend and its options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dsv3c.compiler.core.ir import Value
from dsv3c.compiler.core.target import Emission, EntryGraph, Planned
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets.gpu.capabilities import MOST_BINDING

if TYPE_CHECKING:
    from dsv3c.targets.gpu.emit import Backend


@dataclass(frozen=True, kw_only=True)
class GpuTarget(ABC):
    """A target whose kernels are those of targets.gpu. TVM is imported when the first kernel is built.

    max_binding: bytes of a weight that a kernel gets as one operand; larger weights take a call for each part.
    """

    name: str
    layout: str = "rows16"
    integer_activations: bool = False
    cache_dtypes: tuple[str, ...] = ("bf16", "f32", "int8", "fp8")
    max_binding: int = MOST_BINDING

    @abstractmethod
    def backend(self) -> Backend:
        """What makes files of kernels. Raises a Dsv3cError for a program that is needed and not there."""

    def supports(self, format: WeightFormat, op: str) -> bool:
        from dsv3c.targets.gpu.kernels.weights import supports

        return supports(format, op)

    def scratch_bytes(self, value: Value, bounds: Mapping[str, int]) -> int:
        from dsv3c.targets.gpu.plan import scratch_bytes

        return scratch_bytes(value, bounds, self.max_binding)

    def plan(self, entries: Mapping[str, EntryGraph], bounds: Mapping[str, int]) -> Planned:
        from dsv3c.targets.gpu.plan import plan

        return plan(entries, bounds, self.max_binding)

    def emit(self, planned: Planned) -> Emission:
        """Raises as `backend`."""
        from dsv3c.targets.gpu.emit import emit

        return emit(planned, self.backend())

    def build_kernel(self, spec: str, level: str | None, folder: Path) -> None:
        from dsv3c.targets.gpu.emit import build_kernel

        build_kernel(spec, self.backend(), level, folder)
