"""A target that builds nothing, for tests of what comes before and after kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from dsv3c.compiler.core.caches import caches_of
from dsv3c.compiler.core.ir import Graph, Value, is_weight
from dsv3c.compiler.core.target import Emission, EntryGraph, Planned
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.runtime.artifact import plan as stored
from dsv3c.runtime.artifact.plan import Bounds, Buffer
from dsv3c.targets.calls.recipes import Recipes
from dsv3c.targets.cpu.isa import IsaLevel


class FakeTarget:
    """Emits the weights and an empty library; no kernel is built."""

    name = "fake"
    layout = "rows16"
    integer_activations = True
    cache_dtypes = ("bf16", "f32")
    fails = False

    def configured(self, options: Mapping[str, str]) -> FakeTarget:
        return self

    def levels(self) -> tuple[IsaLevel, ...]:
        """One that every CPU runs."""
        return (IsaLevel("any", "any", (), dot="any", lanes=4),)

    def supports(self, format: WeightFormat, op: str) -> bool:
        return True

    def scratch_bytes(self, value: Value, bounds: Mapping[str, int]) -> int:
        return 0

    def plan(self, entries: Mapping[str, EntryGraph], bounds: Mapping[str, int]) -> Planned:
        recipes = Recipes()
        for entry in entries.values():
            memo: dict[Value, bool] = {}
            for value in entry.graph.values():
                for source in value.inputs:
                    if is_weight(source, memo) and not is_weight(value, memo):
                        recipes.name(source)
        main = entries["decode"].graph
        size = bounds["R"] * int(dict(main.results)["logits"].shape[1])
        caches = caches_of(entry.graph for entry in entries.values())
        buffers = [Buffer(name, "input", "int32", n) for name, n in Bounds(**bounds).step_inputs().items()]
        buffers += [Buffer(cache.name, "cache", cache.dtype, 0, width=cache.width) for cache in caches]
        logits = Buffer("logits", "arena", "float32", size)
        calls = stored.Entry("decode", (), {"logits": stored.Output(len(buffers), "R")}, {}, 1, bounds["T"])
        return Planned(entries, bounds, logits.bytes, (*buffers, logits), {"decode": calls}, recipes.by_name)

    def emit(self, planned: Planned) -> Emission:
        return Emission(({"name": "any", "requires": [], "file": "kernels/any.so"},), self.write_kernels)

    def write_kernels(self, folder: Path, advance: Callable[[int], None]) -> None:
        folder.mkdir()
        (folder / "any.so").write_bytes(b"")
        advance(1)
        if self.fails:
            raise KeyboardInterrupt


def inputs_of(graph: Graph) -> list[str]:
    return [str(value.attrs["name"]) for value in graph.values() if value.op == "input"]


TARGET = FakeTarget()
