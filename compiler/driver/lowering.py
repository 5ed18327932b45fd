"""The trace of the model and the passes over it: from a config to the graphs of kernels that a target plans.

Which passes there are, and in what order, stands here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from dsv3c.compiler.checkpoint import ModelConfig
from dsv3c.compiler.core import crossing
from dsv3c.compiler.core.caches import Cache, caches_of
from dsv3c.compiler.core.ir import Graph, Value
from dsv3c.compiler.core.rewrite import Pass
from dsv3c.compiler.core.target import EntryGraph, Target
from dsv3c.compiler.core.verifier import verify
from dsv3c.compiler.driver import checks, repeat
from dsv3c.compiler.driver.dumps import write_dump
from dsv3c.compiler.errors import UnknownPassError
from dsv3c.compiler.frontend import tracer
from dsv3c.compiler.options import PAGE_SIZE, CompileOptions, debug_level
from dsv3c.passes.choose_all import ChooseAll
from dsv3c.passes.fuse_index import FuseIndex
from dsv3c.passes.fuse_mla import FuseMla
from dsv3c.passes.fuse_moe import FuseMoe
from dsv3c.passes.fuse_qkv_a import FuseQkvA
from dsv3c.passes.fuse_rms_norm import FuseRmsNorm
from dsv3c.passes.fuse_rope import FuseRope
from dsv3c.passes.fuse_router import FuseRouter
from dsv3c.passes.fuse_swiglu import FuseSwiglu
from dsv3c.passes.pack import Pack
from dsv3c.passes.plan_memory import PlanMemory
from dsv3c.passes.quantise import Quantise
from dsv3c.passes.simplify import Simplify
from dsv3c.runtime.artifact.plan import NEVER, SHORT


@dataclass(frozen=True)
class Lowered:
    """The entries after all passes, what the passes did, the bounds of one step."""

    entries: Mapping[str, EntryGraph]
    rewrites: Mapping[str, Mapping[str, int]]
    bounds: Mapping[str, int]

    @property
    def graphs(self) -> dict[str, Graph]:
        return {name: entry.graph for name, entry in self.entries.items()}

    @property
    def caches(self) -> tuple[Cache, ...]:
        return caches_of(self.graphs.values())

    @property
    def cache_bytes_per_token(self) -> int:
        """Of all caches together."""
        return sum(cache.slot_bytes for cache in self.caches)


def passes(
    form: str, options: CompileOptions, target: Target, bounds: Mapping[str, int], max_context: int = NEVER
) -> list[Pass]:
    """The passes in order, for the attention form and the longest context of one entry."""

    def scratch(value: Value) -> int:
        return target.scratch_bytes(value, bounds)

    # A target without a layout of its own hands the graph on to a compiler that packs and plans.
    lay_out: list[Pass] = []
    if target.layout:
        lay_out = [Pack(target.layout, target.integer_activations), PlanMemory(bounds, scratch)]
    return [
        *float_passes(form, max_context),
        Quantise(
            options.resolved_quant,
            options.resolved_head_quant,
            options.resolved_embed_quant,
            options.formats,
            options.kept or {},
        ),
        *lay_out,
    ]


def float_passes(form: str, max_context: int = NEVER) -> list[Pass]:
    """The passes up to the graph of kernels on weights that have no format yet."""
    return [
        Simplify(),  # the patterns below expect neither chains of views nor products with 1
        FuseRmsNorm(),  # before fuse-mla, whose cache row contains a norm
        FuseRope(),  # likewise a rotation
        FuseQkvA(),  # while the latent projection is still the linear whose readers are slices
        Simplify(),  # joins the slices of the joined product with the slices of its parts
        *([ChooseAll(max_context)] if max_context != NEVER else []),  # before fuse-index, which fuses a choice
        FuseIndex(),  # before fuse-mla, which reads what it chooses
        FuseMla(form),
        FuseRouter(),
        FuseMoe(),  # before fuse-swiglu, which would take the shared experts' MLP from it
        FuseSwiglu(),
    ]


def step_bounds(config: ModelConfig, options: CompileOptions) -> dict[str, int]:
    """Largest size of each symbolic dim, with a row for each sequence; N, the cache slots, is chosen at loading."""
    pages, sequences = -(-config.max_position_embeddings // PAGE_SIZE), options.max_sequences
    return {"T": options.max_tokens, "R": max(options.max_rows, sequences), "S": sequences, "P": pages}


def lower(
    config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], options: CompileOptions, target: Target
) -> Lowered:
    """Trace the model and run the passes for each entry function."""
    bounds = step_bounds(config, options)
    traced = _traced(config, shapes, options, checks.choose_cache_dtype(options, target))
    entries, rewrites = {}, {}
    for name, each in traced.items():
        sequence = passes(each.form, options, target, bounds, each.max_context)
        planned, counts = run_passes(Graph(name, each.graph.results), sequence, options)
        entries[name], rewrites[name] = EntryGraph(planned, each.min_tokens, each.max_context), counts
    return Lowered(entries, rewrites, bounds)


def float_graphs(
    config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], options: CompileOptions
) -> dict[str, Graph]:
    """The entries as kernels on weights that have no format yet, with caches in float32."""
    quiet = replace(options, stop_after=None, dump_to=None)
    traced = _traced(config, shapes, options, "f32")
    return {
        name: run_passes(Graph(name, each.graph.results), float_passes(each.form, each.max_context), quiet)[0]
        for name, each in traced.items()
    }


class _Traced(NamedTuple):
    """An entry: its graph, the form of its attention, the tokens from which on it pays, the longest context."""

    graph: Graph
    form: str
    min_tokens: int = 1
    max_context: int = NEVER


def _traced(
    config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], options: CompileOptions, cache_dtype: str
) -> dict[str, _Traced]:
    """The entries by name. What is chosen is not rebuilt, but where all is chosen nothing has to be."""
    step = tracer.trace(config, shapes, PAGE_SIZE, cache_dtype)
    traced, pays_from = {"decode": _Traced(step, "absorbed")}, materialize_from(config)
    prefix, longest = (SHORT, config.index_topk) if config.indexer_types else ("", NEVER)
    if config.indexer_types:
        traced[f"{SHORT}decode"] = _Traced(step, "absorbed", max_context=longest)
    if pays_from <= min(options.max_tokens, longest):
        traced[f"{prefix}prefill"] = _Traced(step, "materialized", pays_from, longest)
    if config.num_nextn_predict_layers:
        traced["mtp"] = _Traced(tracer.trace_mtp(config, shapes, PAGE_SIZE, 0, cache_dtype), "absorbed")
    return traced


def materialize_from(config: ModelConfig) -> int:
    """As `crossing.materialize_from`, for kernels that are equally fast in both forms."""
    return crossing.materialize_from(
        config.kv_lora_rank, config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    )


def run_passes(graph: Graph, sequence: list[Pass], options: CompileOptions) -> tuple[Graph, dict[str, int]]:
    """Run the passes in order, verifying before and after each; returns the graph and the rewrites by pass name.

    Stops after options.stop_after. Raises UnknownPassError, VerifyError, and what a pass raises, with a note of the
    command that repeats it.
    """
    names = list(dict.fromkeys(item.name for item in sequence))
    if options.stop_after is not None and options.stop_after not in names:
        raise UnknownPassError(name=options.stop_after, known=", ".join(names))
    last = max((i for i, item in enumerate(sequence) if item.name == options.stop_after), default=len(sequence) - 1)
    counts: dict[str, int] = dict.fromkeys(names, 0)
    typed: set[Value] = set()
    verify(graph, "trace", "trace", typed)
    _show(graph, "trace", 0, 0.0, options)
    for number, item in enumerate(sequence[: last + 1], start=1):
        with repeat.telling_pass(item, graph, options.target):
            started = time.perf_counter()
            graph, count = item.run(graph)
            counts[item.name] += count
            _show(graph, item.name, number, time.perf_counter() - started, options, count)
            verify(graph, item.phase, item.name, typed)
    return graph, counts


def _show(
    graph: Graph, name: str, number: int, seconds: float, options: CompileOptions, count: int | None = None
) -> None:
    """The dump of one phase, and its line of the debug ladder.

    Written before the graph is verified: wrong graphs are the ones that are looked at.
    """
    told = f"{seconds * 1000:.1f} ms" + ("" if count is None else f", {count} rewrites")
    if options.dump_to is not None:
        write_dump(options.dump_to, graph.name, number, name, told, str(graph))
    if debug_level() >= 1:
        print(f"dsv3c: {graph.name} after {name}: {told}", file=sys.stderr)
    if debug_level() >= 3:
        print(graph, file=sys.stderr)
