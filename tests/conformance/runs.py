"""Run the sequences of a case through anything that can do a step, in several schedules.

A step is a ragged batch: some tokens of each of some sequences. However the sequences are cut into steps, a token's
logits must be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from dsv3c import runtime
from dsv3c.compiler.checkpoint import Checkpoint, ModelConfig
from dsv3c.compiler.core import ops
from dsv3c.compiler.core.caches import Cache, caches_of
from dsv3c.compiler.core.ir import Graph, Value, is_weight
from dsv3c.compiler.core.target import Emission, EntryGraph, Planned
from dsv3c.compiler.driver import lowering, pipeline
from dsv3c.compiler.formats import coded_rows
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.frontend import tracer
from dsv3c.compiler.options import PAGE_SIZE, CompileOptions
from dsv3c.runtime.model import Model
from tests.conformance.cases import DECODED, PROMPTS, Array, Ids

FORMS = ("absorbed", "materialized")
PAGES = 24  # pages of the cache
STALE = 7.0  # what cache rows hold before they are written; a row that is read too early shows

Schedule = Sequence[Sequence[tuple[int, int]]]  # for each step: which sequence, how many of its tokens


def schedules(prompts: tuple[int, ...] = PROMPTS, decoded: int = DECODED) -> dict[str, Schedule]:
    """Every way in which the sequences are run: alone, cut into chunks, and together in one batch."""
    first, second = prompts
    found: dict[str, Schedule] = {"prefill, decode": [[(0, first)], *[[(0, 1)]] * decoded]}
    for size in (1, 5, 16, 17):
        chunks = [min(size, first - at) for at in range(0, first, size)]
        found[f"chunks of {size}"] = [*([(0, count)] for count in chunks), [(0, decoded)]]
    found["second alone"] = [[(1, second)], *[[(1, 1)]] * decoded]
    found["two at once"] = [[(1, second), (0, first)], *[[(0, 1), (1, 1)]] * decoded]
    found["second joins"] = [[(0, first)], [(0, 1), (1, second)], *[[(1, 1), (0, 1)]] * (decoded - 1), [(1, 1)]]
    return found


class Batch(NamedTuple):
    """tokens, positions, sequence [T]; page_table [S, P]. Logits are wanted of every token."""

    tokens: Ids
    positions: Ids
    sequence: Ids
    page_table: Ids


class Stepper(Protocol):
    """Keeps the cache between steps."""

    def step(self, batch: Batch) -> Array:
        """Logits [T, vocab_size]."""


def page_tables(lengths: Sequence[int]) -> Ids:
    """[S, P]: for every sequence pages of its own, scattered over the cache."""
    count = max(-(-length // PAGE_SIZE) for length in lengths)
    scattered = [(7 * index + 5) % PAGES for index in range(count * len(lengths))]
    return np.array(scattered, np.int32).reshape(len(lengths), count)


def run(stepper: Stepper, sequences: Sequence[Ids], schedule: Schedule) -> list[Array]:
    """Logits of the tokens that the schedule covers, [tokens, vocab_size] for each sequence."""
    pages = page_tables([sequence.size for sequence in sequences])
    done = [0] * len(sequences)
    found: list[list[Array]] = [[] for _ in sequences]
    for pieces in schedule:
        spans = [np.arange(done[index], done[index] + count, dtype=np.int32) for index, count in pieces]
        tokens = [sequences[index][span] for (index, _), span in zip(pieces, spans, strict=True)]
        rows = np.repeat(np.arange(len(pieces), dtype=np.int32), [count for _, count in pieces])
        table = pages[[index for index, _ in pieces]]
        logits = stepper.step(Batch(np.concatenate(tokens), np.concatenate(spans), rows, table))
        for row, (index, count) in enumerate(pieces):
            found[index].append(logits[rows == row].copy())
            done[index] += count
    return [np.concatenate(parts) if parts else np.zeros((0, 0), np.float32) for parts in found]


def relative_error(found: Array, expected: Array) -> float:
    """Largest difference over the largest expected size; infinite when a value is not finite."""
    assert found.shape == expected.shape, f"{found.shape} against {expected.shape}"
    error = float(np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max())
    return error if np.isfinite(error) else float("inf")


def worst(found: Sequence[Array], expected: Sequence[Array]) -> float:
    """The largest relative error of the sequences that were run to their end."""
    pairs = [(part, whole) for part, whole in zip(found, expected, strict=True) if part.size]
    return max(relative_error(part, whole) for part, whole in pairs)


# --- numpy evaluation of graphs --------------------------------------------------------------------------------------


def stale_rows(cache: Cache, slots: int) -> Array:
    return coded_rows.stored(np.full((slots, cache.width), STALE, np.float32), cache.array_dtype)


class GraphStepper:
    """A graph of the main model, or of an MTP layer when `hidden` gives the further input of a step."""

    def __init__(self, graph: Graph, weight: Callable[[str], Array], pages: int = PAGES) -> None:
        self.graph, self._weights = fold(graph, weight)
        self._caches = {cache.name: stale_rows(cache, pages * PAGE_SIZE) for cache in caches_of([graph])}

    def step(self, batch: Batch, hidden: Array | None = None, rows: Ids | None = None) -> Array:
        return self.results(batch, hidden, rows)["logits"]

    def results(self, batch: Batch, hidden: Array | None = None, rows: Ids | None = None) -> dict[str, Array]:
        rows = np.arange(batch.tokens.size, dtype=np.int32) if rows is None else rows
        inputs = {**batch._asdict(), "rows": rows, **self._caches}
        if hidden is not None:
            inputs["hidden"] = hidden
        results = ops.evaluate_graph(self.graph, inputs, self._weights.__getitem__)
        self._caches = {name: results.pop(name) for name in self._caches}
        return results


def fold(graph: Graph, weight: Callable[[str], Array]) -> tuple[Graph, dict[str, Any]]:
    """The graph with every expression over weights computed once and put in as a param; the params' values."""
    memo: dict[Value, bool] = {}
    wanted = {
        source
        for value in graph.values()
        if not is_weight(value, memo)
        for source in value.inputs
        if is_weight(source, memo) and source.op != "const"
    }
    order = [value for value in graph.values() if value in wanted]
    computed = ops.evaluate(order, lambda leaf: weight(str(leaf.attrs["name"])))
    names = {value: f"weight.{index}" for index, value in enumerate(order)}

    def replace(value: Value, original: Value) -> Value:
        return ops.leaf("param", names[original], original.type) if original in names else value

    return graph.map(replace), dict(zip(names.values(), computed, strict=True))


def traced(checkpoint: Checkpoint, cache_dtype: str = "f32") -> Graph:
    return tracer.trace(checkpoint.config, checkpoint.shapes, PAGE_SIZE, cache_dtype)


def traced_mtp(checkpoint: Checkpoint) -> Graph:
    return tracer.trace_mtp(checkpoint.config, checkpoint.shapes, PAGE_SIZE, 0)


class NumpyTarget:
    """A target whose kernels are the numpy definitions of the operations: no working memory, nothing emitted."""

    name = "numpy"
    layout = "rows16"
    integer_activations = True
    cache_dtypes = ("bf16", "f32")

    def supports(self, format: WeightFormat, op: str) -> bool:
        return True

    def scratch_bytes(self, value: Value, bounds: Mapping[str, int]) -> int:
        return 0

    def plan(self, entries: Mapping[str, EntryGraph], bounds: Mapping[str, int]) -> Planned:
        raise AssertionError("graphs of this target are evaluated, never planned")

    def emit(self, planned: Planned) -> Emission:
        raise AssertionError("graphs of this target are evaluated, never emitted")


def planned(graph: Graph, config: ModelConfig, form: str, quant: str = "float32") -> Graph:
    """The graph after all passes."""
    options = CompileOptions(quant=quant)
    sequence = lowering.passes(form, options, NumpyTarget(), lowering.step_bounds(config, options))
    return lowering.run_passes(graph, sequence, options)[0]


def graphs(checkpoint: Checkpoint) -> dict[str, Graph]:
    """The main model as traced, and after all passes in both forms of attention."""
    graph = traced(checkpoint)
    return {"traced": graph, **{form: planned(graph, checkpoint.config, form) for form in FORMS}}


def mtp_graphs(checkpoint: Checkpoint) -> dict[str, Graph]:
    """As `graphs`, for the first MTP layer."""
    graph = traced_mtp(checkpoint)
    return {"traced": graph, **{form: planned(graph, checkpoint.config, form) for form in FORMS}}


# --- compiled artifacts ----------------------------------------------------------------------------------------------


class ArtifactStepper:
    """Steps of a loaded artifact through the entry called so, or through the one it chooses itself when None."""

    def __init__(self, model: Model, entry: str | None = None) -> None:
        self.model = model
        self.entry = entry

    def step(self, batch: Batch) -> Array:
        rows = np.arange(batch.tokens.size)
        steps = (batch.positions, batch.sequence, list(batch.page_table), rows)
        return self.model.session.step(batch.tokens, *steps, entry=self.entry).logits.copy()


def compiled(folder: Path, out: Path, quant: str = "float32", target: str = "x86") -> Model:
    """The checkpoint compiled for a target that this machine runs, and loaded."""
    pipeline.compile_checkpoint(folder, out, CompileOptions(quant=quant, target=target))
    return runtime.load(out)
