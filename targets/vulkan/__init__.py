"""Vulkan: kernels of dsv3c.targets.gpu as GLSL, compiled to SPIR-V modules when the artifact is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dsv3c.compiler.core.ir import Value
from dsv3c.compiler.core.target import Emission, Entry
from dsv3c.compiler.errors import Dsv3cError
from dsv3c.compiler.formats.table import WeightFormat

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
        from dsv3c.targets.gpu.emit import scratch_bytes

        return scratch_bytes(value, bounds)

    def emit(self, entries: Mapping[str, Entry], bounds: Mapping[str, int]) -> Emission:
        """Without a shader compiler, forms of kernels are those that one which knows everything compiles."""
        from dsv3c.targets.gpu.emit import Backend, emit
        from dsv3c.targets.vulkan import spirv

        capabilities, programs = spirv.expressible()
        facts = {"modules": spirv.SPIRV, "compiler": ", ".join(dict.fromkeys(map(spirv.version, programs)))}
        emission = emit(entries, bounds, Backend(spirv.compile_modules, (), facts, self.max_binding, capabilities))
        return replace(emission, require_tools=spirv.find_compiler)


TARGET = Vulkan()
