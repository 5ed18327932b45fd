"""Vulkan: kernels of dsv3c.targets.gpu as GLSL, compiled to SPIR-V modules when the artifact is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dsv3c.compiler.core.ir import Value
from dsv3c.compiler.core.target import Emission, EntryGraph, Planned
from dsv3c.compiler.errors import Dsv3cError
from dsv3c.compiler.formats.table import WeightFormat

if TYPE_CHECKING:
    from dsv3c.targets.gpu.emit import Backend

LEAST_RANGE = 128 << 20  # maxStorageBufferRange of every device


class BindingInvalid(Dsv3cError):
    message = "target vulkan: binding is {text!r}, it must be a number of MiB from 1 to 2047"
    hint = "leave it out for any device; more saves calls where maxStorageBufferRange of all devices in mind is larger"


@dataclass(frozen=True)
class Vulkan:
    """The Vulkan target. TVM is imported when the first kernel is built.

    max_binding: bytes of a weight that a kernel gets as one operand; larger weights take a call for each part.
    """

    name: str = "vulkan"
    layout: str = "rows16"
    integer_activations: bool = False
    cache_dtypes: tuple[str, ...] = ("bf16", "f32", "int8", "fp8")
    max_binding: int = LEAST_RANGE

    def configured(self, options: Mapping[str, str]) -> Vulkan:
        """Raises BindingInvalid."""
        text = options.get("binding", str(self.max_binding >> 20))
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 2047:
            raise BindingInvalid(text=text)
        return replace(self, max_binding=int(text) << 20)

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
        """Forms of kernels are those that the shader compilers found can express. Raises NoShaderCompiler."""
        from dsv3c.targets.gpu.emit import emit

        return emit(planned, self._backend())

    def build_kernel(self, spec: str, level: str | None, folder: Path) -> None:
        from dsv3c.targets.gpu.emit import build_kernel

        build_kernel(spec, self._backend(), level, folder)

    def _backend(self) -> Backend:
        from dsv3c.targets.gpu.emit import Backend
        from dsv3c.targets.vulkan import spirv

        capabilities, programs = spirv.expressible()
        facts = {"modules": spirv.SPIRV, "compiler": ", ".join(dict.fromkeys(map(spirv.version, programs)))}
        return Backend(spirv.compile_modules, (), facts, capabilities)


TARGET = Vulkan()
