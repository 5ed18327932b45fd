"""Vulkan: kernels of dsv3c.targets.gpu as GLSL, compiled to SPIR-V modules when the artifact is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsv3c.compiler.ir import Value
from dsv3c.compiler.target import Emission, Entry


@dataclass(frozen=True)
class Vulkan:
    """The Vulkan target. TVM is imported when the first graph is lowered."""

    name: str = "vulkan"
    layout: str = "rows16"
    integer_activations: bool = False
    cache_dtypes: tuple[str, ...] = ("bf16", "f32")

    def configured(self, options: Mapping[str, str]) -> Vulkan:
        return self

    def scratch_bytes(self, value: Value, bounds: Mapping[str, int]) -> int:
        from dsv3c.targets.gpu.emit import scratch_bytes

        return scratch_bytes(value, bounds)

    def emit(self, entries: Mapping[str, Entry], bounds: Mapping[str, int]) -> Emission:
        """Raises NoShaderCompiler before anything is built."""
        from dsv3c.targets.gpu.emit import Backend, emit
        from dsv3c.targets.vulkan.spirv import SPIRV, compile_modules, find_compiler

        find_compiler()
        return emit(entries, bounds, Backend(compile_modules, facts={"modules": SPIRV}))


TARGET = Vulkan()
