"""NVIDIA GPUs: kernels of dsv3c.targets.gpu as CUDA C++, in one fat binary of machine code and PTX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dsv3c.compiler.core.ir import Value
from dsv3c.compiler.core.target import Emission, Entry
from dsv3c.compiler.formats.table import WeightFormat


@dataclass(frozen=True)
class Cuda:
    """The CUDA target. TVM and the compiler are looked for when the first graph is lowered.

    architectures: sm_XX to compile for, in rising order; none takes all that the compiler found knows of the default
    ones.
    """

    architectures: tuple[str, ...] = ()
    name: str = "cuda"
    layout: str = "rows16"
    integer_activations: bool = False
    cache_dtypes: tuple[str, ...] = ("bf16", "f32")

    def configured(self, options: Mapping[str, str]) -> Cuda:
        """Raises UnknownArchitecture for what is not sm_XX, at least sm_75, in a list joined by `+`."""
        from dsv3c.targets.cuda.architectures import parse_architectures

        text = options.get("arch")
        return self if text is None else replace(self, architectures=parse_architectures(text))

    def supports(self, format: WeightFormat, op: str) -> bool:
        from dsv3c.targets.gpu.kernels.weights import supports

        return supports(format, op)

    def scratch_bytes(self, value: Value, bounds: Mapping[str, int]) -> int:
        from dsv3c.targets.gpu.emit import scratch_bytes

        return scratch_bytes(value, bounds)

    def emit(self, entries: Mapping[str, Entry], bounds: Mapping[str, int]) -> Emission:
        """Raises UnknownArchitecture for one that the compiler found does not know."""
        from dsv3c.targets.cuda.binaries import Binaries, attending, levels
        from dsv3c.targets.cuda.capabilities import CUDA
        from dsv3c.targets.cuda.toolchains import find_toolchain, toolchain_for_planning
        from dsv3c.targets.gpu.emit import Backend, emit

        toolchain = toolchain_for_planning()
        binaries = Binaries(toolchain, toolchain.choose(self.architectures))
        facts = {"compiler": toolchain.version}
        backend = Backend(binaries.compile, levels(binaries.architectures), facts, capabilities=CUDA)
        emission = emit(entries, bounds, backend)
        return replace(emission, levels=attending(emission.levels, emission.plan), require_tools=find_toolchain)


TARGET = Cuda()
