"""ONNX graphs for ONNX Runtime: one model.onnx whose initialisers lie in weights.safetensors, and genai_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dsv3c.compiler.core.chosen import computed
from dsv3c.compiler.core.ir import Graph, Value
from dsv3c.compiler.core.target import Emission, EntryGraph, Planned
from dsv3c.compiler.errors import Dsv3cError
from dsv3c.compiler.formats.table import WeightFormat

# Execution provider -> element types that activations and cache can have, the usual one first. ONNX Runtime's CPU
# kernels compute in float32; float16 there costs casts around every node.
PROVIDERS: Mapping[str, tuple[str, ...]] = {"cpu": ("f32",), "cuda": ("f16", "f32"), "webgpu": ("f16", "f32")}
DEFAULT_ACCURACY_LEVEL = {"cpu": 4}  # elsewhere 0: QMoE of the WebGPU builds does not know the attribute yet
ACCURACY_LEVELS = ("0", "1", "2", "3", "4")


class UnknownOnnxProvider(Dsv3cError):
    message = "target onnx knows no provider {provider!r}"
    hint = "the known ones are {known}"


class UnknownAccuracyLevel(Dsv3cError):
    message = "accuracy_level is {level!r}, it must be one of {known}"
    hint = "4 rounds activations to int8 and is the fastest; 0 leaves the choice to ONNX Runtime, which keeps float32"


class UnknownOnnxExperts(Dsv3cError):
    message = "target onnx cannot have experts={value}"
    hint = (
        "experts=1 makes the experts that tokens visit outputs of the graph, to be counted; experts=0 leaves them out"
    )


@dataclass(frozen=True)
class Onnx:
    """The ONNX target. `onnx` is imported when the first graph is planned.

    provider: the execution provider the graph is meant for. accuracy_level: of MatMulNBits and QMoE. experts: whether
    those that tokens visit are outputs, which every step then pays for.
    """

    provider: str = "cpu"
    accuracy_level: int = 4
    experts: bool = False
    name: str = "onnx"
    layout: str = ""
    integer_activations: bool = False

    @property
    def cache_dtypes(self) -> tuple[str, ...]:
        return PROVIDERS[self.provider]

    def configured(self, options: Mapping[str, str]) -> Onnx:
        """Raises UnknownOnnxProvider, UnknownAccuracyLevel, UnknownOnnxExperts."""
        provider = options.get("provider", self.provider)
        if provider not in PROVIDERS:
            raise UnknownOnnxProvider(provider=provider, known=", ".join(PROVIDERS))
        level = options.get("accuracy_level", str(DEFAULT_ACCURACY_LEVEL.get(provider, 0)))
        if level not in ACCURACY_LEVELS:
            raise UnknownAccuracyLevel(level=level, known=", ".join(ACCURACY_LEVELS))
        experts = options.get("experts", "0")
        if experts not in ("0", "1"):
            raise UnknownOnnxExperts(value=experts)
        return replace(self, provider=provider, accuracy_level=int(level), experts=experts == "1")

    def supports(self, format: WeightFormat, op: str) -> bool:
        """Codes of matrices as MatMulNBits and QMoE read them, those of an embedding row by row."""
        return ("rows" if op == "take" else "nbits") in format.packings or not format.has_codes

    def scratch_bytes(self, value: Value, bounds: Mapping[str, int]) -> int:
        return 0  # ONNX Runtime plans its own memory

    def plan(self, entries: Mapping[str, EntryGraph], bounds: Mapping[str, int]) -> Planned:
        from dsv3c.targets.onnx.emit import plan

        return plan(self._counted(entries), bounds, self.accuracy_level)

    def emit(self, planned: Planned) -> Emission:
        from dsv3c.targets.onnx.emit import emit

        return emit(planned, self.provider, self.accuracy_level)

    def _counted(self, entries: Mapping[str, EntryGraph]) -> Mapping[str, EntryGraph]:
        """The graphs with results that say which experts tokens visit only if they are wanted."""
        if self.experts:
            return entries
        return {
            name: replace(entry, graph=Graph(entry.graph.name, computed(entry.graph)))
            for name, entry in entries.items()
        }


TARGET = Onnx()
