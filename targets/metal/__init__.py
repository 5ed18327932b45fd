"""Metal: kernels of dsv3c.targets.gpu as text in the Metal Shading Language, which the Mac compiles at first use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dsv3c.compiler.core.ir import Value
from dsv3c.compiler.core.target import Emission, Entry
from dsv3c.compiler.formats.table import WeightFormat


@dataclass(frozen=True)
class Metal:
    """The Metal target. TVM is imported when the first graph is lowered; nothing of Apple's is needed to compile, but
    off Macs ziglang, which links.

    materialized_attention: steps of any length attend in latent space.
    """

    name: str = "metal"
    layout: str = "rows16"
    integer_activations: bool = False
    cache_dtypes: tuple[str, ...] = ("bf16", "f32")
    materialized_attention: bool = False

    def configured(self, options: Mapping[str, str]) -> Metal:
        return self

    def supports(self, format: WeightFormat, op: str) -> bool:
        from dsv3c.targets.gpu.kernels.weights import supports

        return supports(format, op)

    def scratch_bytes(self, value: Value, bounds: Mapping[str, int]) -> int:
        from dsv3c.targets.gpu.emit import scratch_bytes

        return scratch_bytes(value, bounds)

    def emit(self, entries: Mapping[str, Entry], bounds: Mapping[str, int]) -> Emission:
        from dsv3c.targets.gpu.emit import Backend, emit
        from dsv3c.targets.link.platforms import ARM_MACOS, find_compiler_for
        from dsv3c.targets.metal.capabilities import METAL
        from dsv3c.targets.metal.msl import LANGUAGE, LEVELS, write_kernels

        emission = emit(entries, bounds, Backend(write_kernels, LEVELS, {"modules": LANGUAGE}, capabilities=METAL))
        return replace(emission, require_tools=lambda: find_compiler_for(ARM_MACOS))


TARGET = Metal()
