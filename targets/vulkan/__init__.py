"""Vulkan: kernels of dsv3c.targets.gpu as GLSL, compiled to SPIR-V modules when the artifact is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dsv3c.compiler.errors import Dsv3cError
from dsv3c.compiler.ir import Value
from dsv3c.compiler.target import Emission, Entry

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
        """Raises NoShaderCompiler before anything is built."""
        from dsv3c.targets.gpu.capabilities import COOPERATIVE_MATRIX, INTEGER_DOT, VULKAN
        from dsv3c.targets.gpu.emit import Backend, emit
        from dsv3c.targets.vulkan import spirv

        capabilities, programs = VULKAN, [spirv.find_compiler()]
        special = {COOPERATIVE_MATRIX: spirv.find_matrix_compiler(), INTEGER_DOT: spirv.find_dot_compiler()}
        for name, program in special.items():
            if program is None:
                capabilities = capabilities.without(name)
            else:
                programs.append(program)
        used = dict.fromkeys(spirv.version(program) for program in programs)
        facts = {"modules": spirv.SPIRV, "compiler": ", ".join(used)}
        backend = Backend(spirv.compile_modules, (), facts, self.max_binding, capabilities)
        return emit(entries, bounds, backend)


TARGET = Vulkan()
