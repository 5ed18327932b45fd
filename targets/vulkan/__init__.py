"""Vulkan: kernels of dsv3c.targets.gpu as GLSL, compiled to SPIR-V modules when the artifact is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dsv3c.compiler.errors import Dsv3cError
from dsv3c.targets.gpu.target import GpuTarget

if TYPE_CHECKING:
    from dsv3c.targets.gpu.emit import Backend

LEAST_RANGE = 128 << 20  # maxStorageBufferRange of every device


class BindingInvalid(Dsv3cError):
    message = "target vulkan: binding is {text!r}, it must be a number of MiB from 1 to 2047"
    hint = "leave it out for any device; more saves calls where maxStorageBufferRange of all devices in mind is larger"


@dataclass(frozen=True, kw_only=True)
class Vulkan(GpuTarget):
    """The Vulkan target."""

    name: str = "vulkan"
    max_binding: int = LEAST_RANGE

    def configured(self, options: Mapping[str, str]) -> Vulkan:
        """Raises BindingInvalid."""
        text = options.get("binding", str(self.max_binding >> 20))
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 2047:
            raise BindingInvalid(text=text)
        return replace(self, max_binding=int(text) << 20)

    def backend(self) -> Backend:
        """Forms of kernels are those that the shader compilers found can express. Raises NoShaderCompiler."""
        from dsv3c.targets.gpu.emit import Backend
        from dsv3c.targets.vulkan import spirv

        capabilities, programs = spirv.expressible()
        facts = {"modules": spirv.SPIRV, "compiler": ", ".join(dict.fromkeys(map(spirv.version, programs)))}
        return Backend(spirv.compile_modules, (), facts, capabilities)


TARGET = Vulkan()
