"""Metal: kernels of dsv3c.targets.gpu as text in the Metal Shading Language, which the Mac compiles at first use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsv3c.compiler.core.target import Emission, Planned
from dsv3c.targets.gpu.target import GpuTarget

if TYPE_CHECKING:
    from dsv3c.targets.gpu.emit import Backend


@dataclass(frozen=True, kw_only=True)
class Metal(GpuTarget):
    """Nothing of Apple's is needed to compile, but off Macs ziglang, which links."""

    name: str = "metal"

    def configured(self, options: Mapping[str, str]) -> Metal:
        return self

    def emit(self, planned: Planned) -> Emission:
        """Raises NoCrossCompiler, off Macs."""
        from dsv3c.targets.link.platforms import ARM_MACOS, find_compiler_for

        find_compiler_for(ARM_MACOS)
        return super().emit(planned)

    def backend(self) -> Backend:
        from dsv3c.targets.gpu.emit import Backend
        from dsv3c.targets.metal.capabilities import METAL
        from dsv3c.targets.metal.msl import LANGUAGE, LEVELS, write_kernels

        return Backend(write_kernels, LEVELS, {"modules": LANGUAGE}, capabilities=METAL)


TARGET = Metal()
