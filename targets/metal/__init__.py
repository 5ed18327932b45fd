"""Metal: kernels of dsv3c.targets.gpu as text in the Metal Shading Language, which the Mac compiles at first use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dsv3c.compiler.core.ir import Value
from dsv3c.compiler.core.target import Emission, EntryGraph, Planned
from dsv3c.compiler.formats.table import WeightFormat

if TYPE_CHECKING:
    from dsv3c.targets.gpu.emit import Backend


@dataclass(frozen=True)
class Metal:
    """The Metal target. TVM is imported when the first kernel is built; nothing of Apple's is needed to compile, but
    off Macs ziglang, which links.

    materialized_attention: steps of any length attend in latent space.
    """

    name: str = "metal"
    layout: str = "rows16"
    integer_activations: bool = False
    cache_dtypes: tuple[str, ...] = ("bf16", "f32", "int8", "fp8")
    materialized_attention: bool = False

    def configured(self, options: Mapping[str, str]) -> Metal:
        return self

    def supports(self, format: WeightFormat, op: str) -> bool:
        from dsv3c.targets.gpu.kernels.weights import supports

        return supports(format, op)

    def scratch_bytes(self, value: Value, bounds: Mapping[str, int]) -> int:
        from dsv3c.targets.gpu.plan import scratch_bytes

        return scratch_bytes(value, bounds)

    def plan(self, entries: Mapping[str, EntryGraph], bounds: Mapping[str, int]) -> Planned:
        from dsv3c.targets.gpu.plan import plan

        return plan(entries, bounds)

    def emit(self, planned: Planned) -> Emission:
        """Raises NoCrossCompiler, off Macs."""
        from dsv3c.targets.gpu.emit import emit
        from dsv3c.targets.link.platforms import ARM_MACOS, find_compiler_for

        find_compiler_for(ARM_MACOS)
        return emit(planned, self._backend())

    def build_kernel(self, spec: str, level: str | None, folder: Path) -> None:
        from dsv3c.targets.gpu.emit import build_kernel

        build_kernel(spec, self._backend(), level, folder)

    def _backend(self) -> Backend:
        from dsv3c.targets.gpu.emit import Backend
        from dsv3c.targets.metal.capabilities import METAL
        from dsv3c.targets.metal.msl import LANGUAGE, LEVELS, write_kernels

        return Backend(write_kernels, LEVELS, {"modules": LANGUAGE}, capabilities=METAL)


TARGET = Metal()
