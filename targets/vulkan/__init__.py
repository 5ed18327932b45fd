"""Vulkan: kernels of dsv3c.targets.gpu as GLSL, compiled to SPIR-V modules when the artifact is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dsv3c.compiler.core.ir import Value
from dsv3c.compiler.core.target import Emission, Entry
from dsv3c.compiler.errors import Dsv3cError

if TYPE_CHECKING:
    from dsv3c.targets.gpu.emit import Backend

LEAST_RANGE = 128 << 20  # maxStorageBufferRange of every device


class BindingInvalid(Dsv3cError):
    message = "target vulkan: binding is {text!r}, it must be a number of MiB from 1 to 2047"
    hint = "leave it out for any device; more saves calls where maxStorageBufferRange of all devices in mind is larger"


@dataclass(frozen=True)
class Vulkan:
    """The Vulkan target. TVM is imported when the first graph is lowered.

    max_binding: bytes of a weight that a kernel gets as one operand; larger weights take a call for each part.
    """

    name: str = "vulkan"
    layout: str = "rows16"
    integer_activations: bool = False
    cache_dtypes: tuple[str, ...] = ("bf16", "f32")
    fp8_weights: bool = True
    max_binding: int = LEAST_RANGE

    def configured(self, options: Mapping[str, str]) -> Vulkan:
        """Raises BindingInvalid."""
        text = options.get("binding", str(self.max_binding >> 20))
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 2047:
            raise BindingInvalid(text=text)
        return replace(self, max_binding=int(text) << 20)

    def scratch_bytes(self, value: Value, bounds: Mapping[str, int]) -> int:
        from dsv3c.targets.gpu.emit import scratch_bytes

        return scratch_bytes(value, bounds)

    def emit(self, entries: Mapping[str, Entry], bounds: Mapping[str, int]) -> Emission:
        """Without a shader compiler, forms of kernels are those that one which knows everything compiles."""
        from dsv3c.targets.gpu.emit import emit
        from dsv3c.targets.vulkan import spirv

        return replace(emit(entries, bounds, self._backend()), require_tools=spirv.find_compiler)

    def build_kernel(self, spec: str, level: str | None, folder: Path) -> None:
        from dsv3c.targets.gpu.emit import build_kernel

        build_kernel(spec, self._backend(), level, folder)

    def _backend(self) -> Backend:
        from dsv3c.targets.gpu.emit import Backend
        from dsv3c.targets.vulkan import spirv

        capabilities, programs = spirv.expressible()
        facts = {"modules": spirv.SPIRV, "compiler": ", ".join(dict.fromkeys(map(spirv.version, programs)))}
        return Backend(spirv.compile_modules, (), facts, self.max_binding, capabilities)


TARGET = Vulkan()
