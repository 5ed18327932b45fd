"""NVIDIA GPUs: kernels of dsv3c.targets.gpu as CUDA C++, in one fat binary of machine code and PTX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dsv3c.compiler.core.target import Emission, Planned
from dsv3c.targets.gpu.target import GpuTarget

if TYPE_CHECKING:
    from dsv3c.targets.gpu.emit import Backend


@dataclass(frozen=True, kw_only=True)
class Cuda(GpuTarget):
    """architectures: sm_XX to compile for, in rising order; none takes all that the compiler found knows of the default
    ones."""

    name: str = "cuda"
    architectures: tuple[str, ...] = ()

    def configured(self, options: Mapping[str, str]) -> Cuda:
        """Raises UnknownArchitecture for what is not sm_XX, at least sm_75, in a list joined by `+`."""
        from dsv3c.targets.cuda.architectures import parse_architectures

        text = options.get("arch")
        return self if text is None else replace(self, architectures=parse_architectures(text))

    def emit(self, planned: Planned) -> Emission:
        from dsv3c.targets.cuda.binaries import attending

        emission = super().emit(planned)
        return replace(emission, levels=attending(emission.levels, emission.dispatches))

    def backend(self) -> Backend:
        """Raises NoCudaCompiler, NoFatbinLibrary; UnknownArchitecture for one that the compiler found does not know."""
        from dsv3c.targets.cuda.binaries import Binaries, levels
        from dsv3c.targets.cuda.capabilities import CUDA
        from dsv3c.targets.cuda.toolchains import find_toolchain
        from dsv3c.targets.gpu.emit import Backend

        toolchain = find_toolchain()
        binaries = Binaries(toolchain, toolchain.choose(self.architectures))
        facts = {"compiler": toolchain.version}
        return Backend(binaries.compile, levels(binaries.architectures), facts, capabilities=CUDA)


TARGET = Cuda()
