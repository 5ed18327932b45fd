"""NVIDIA GPUs: kernels of dsv3c.targets.gpu as CUDA C++, in one fat binary of machine code and PTX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dsv3c.compiler.core.ir import Value
from dsv3c.compiler.core.target import Emission, EntryGraph, Planned
from dsv3c.compiler.formats.table import WeightFormat

if TYPE_CHECKING:
    from dsv3c.targets.gpu.emit import Backend


@dataclass(frozen=True)
class Cuda:
    """The CUDA target. TVM and the compiler are looked for when kernels are emitted.

    architectures: sm_XX to compile for, in rising order; none takes all that the compiler found knows of the default
    ones.
    """

    architectures: tuple[str, ...] = ()
    name: str = "cuda"
    layout: str = "rows16"
    integer_activations: bool = False
    cache_dtypes: tuple[str, ...] = ("bf16", "f32", "int8", "fp8")

    def configured(self, options: Mapping[str, str]) -> Cuda:
        """Raises UnknownArchitecture for what is not sm_XX, at least sm_75, in a list joined by `+`."""
        from dsv3c.targets.cuda.architectures import parse_architectures

        text = options.get("arch")
        return self if text is None else replace(self, architectures=parse_architectures(text))

    def supports(self, format: WeightFormat, op: str) -> bool:
        from dsv3c.targets.gpu.kernels.weights import supports

        return supports(format, op)

    def scratch_bytes(self, value: Value, bounds: Mapping[str, int]) -> int:
        from dsv3c.targets.gpu.plan import scratch_bytes

        return scratch_bytes(value, bounds)

    def plan(self, entries: Mapping[str, EntryGraph], bounds: Mapping[str, int]) -> Planned:
        from dsv3c.targets.gpu.plan import plan

        return plan(entries, bounds)

    def emit(self, planned: Planned) -> Emission:
        """Raises NoCudaCompiler, NoFatbinLibrary; UnknownArchitecture for one that the compiler found does not know."""
        from dsv3c.targets.cuda.binaries import attending
        from dsv3c.targets.gpu.emit import emit

        emission = emit(planned, self._backend())
        return replace(emission, levels=attending(emission.levels, emission.dispatches))

    def build_kernel(self, spec: str, level: str | None, folder: Path) -> None:
        from dsv3c.targets.gpu.emit import build_kernel

        build_kernel(spec, self._backend(), level, folder)

    def _backend(self) -> Backend:
        from dsv3c.targets.cuda.binaries import Binaries, levels
        from dsv3c.targets.cuda.capabilities import CUDA
        from dsv3c.targets.cuda.toolchains import find_toolchain
        from dsv3c.targets.gpu.emit import Backend

        toolchain = find_toolchain()
        binaries = Binaries(toolchain, toolchain.choose(self.architectures))
        facts = {"compiler": toolchain.version}
        return Backend(binaries.compile, levels(binaries.architectures), facts, capabilities=CUDA)


TARGET = Cuda()
