"""The whole compilation: checkpoint, trace, passes, target, artifact."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from dsv3c import targets
from dsv3c.compiler.checkpoint import Checkpoint, ModelConfig, hub, model_name, sides
from dsv3c.compiler.core import crossing
from dsv3c.compiler.core.ir import Graph, Value
from dsv3c.compiler.core.rewrite import Pass
from dsv3c.compiler.core.target import EntryGraph, Target
from dsv3c.compiler.core.verifier import verify
from dsv3c.compiler.driver import (
    artifact,
    checks,
    contents,
    costs,
    journal,
    kept,
    measuring,
    mixing,
    packing,
    repeat,
    text_files,
    weights,
)
from dsv3c.compiler.driver.dumps import write_dump
from dsv3c.compiler.driver.lowered import Lowered
from dsv3c.compiler.driver.workplace import JOURNAL
from dsv3c.compiler.errors import UnknownPassError
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.frontend import tracer
from dsv3c.compiler.options import AUTO, PAGE_SIZE, CompileOptions, debug_level
from dsv3c.compiler.quantisation import choice
from dsv3c.compiler.quantisation import quant_plan as quant_plan_file
from dsv3c.compiler.quantisation.calibration import text as calibration_text
from dsv3c.compiler.quantisation.calibration.text import CalibrationText
from dsv3c.compiler.quantisation.quant_plan import QuantPlan
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
from dsv3c.passes.quantise import MATRIX_OPERANDS, Quantise
from dsv3c.passes.simplify import Simplify
from dsv3c.runtime.artifact.artifact import MANIFEST
from dsv3c.runtime.artifact.plan import NEVER, SHORT
from dsv3c.runtime.cli.output import size
from dsv3c.runtime.progress import Progress, Silent


@runtime_checkable
class Teller(Protocol):
    """A progress that also shows what is worth saying before the long work begins."""

    def tell(self, text: str) -> None: ...


@dataclass(frozen=True)
class CompileReport:
    """out: the artifact, None when the passes were stopped; manifest: its content.

    seconds: wall time. peak_rss: largest resident set so far, in bytes. told: how many of the notes, the first ones,
    were told while it ran. takes_text: whether the artifact has a tokenizer.
    """

    out: Path | None
    manifest: dict[str, Any]
    notes: tuple[str, ...]
    seconds: float
    peak_rss: int
    told: int = 0
    takes_text: bool = True


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


def compile_checkpoint(
    checkpoint: Path, out: Path | None, options: CompileOptions, progress: Progress | None = None
) -> CompileReport:
    """Compile a checkpoint, a folder or the id of one on a hub, into an artifact folder.

    out: None takes artifacts/<model>-<quant>-<target>. Nothing is left behind when it fails or is interrupted.
    Raises Dsv3cError subclasses: for the checkpoint, the options, the target's tools, an existing `out`, and for a
    fault of its own in what was written, which is opened as the runtime does before it is put in place.
    """
    started, progress = time.monotonic(), progress or Silent()
    target: Target = targets.configured(options.target)
    checks.check_formats(options)
    checks.check_supported(options, target)
    checks.check_method(options)
    checkpoint = hub.local(checkpoint, progress)
    if out is not None:
        _check_before(checkpoint, out, options)
    progress.stage("reading the checkpoint's headers")
    source = Checkpoint.open(checkpoint, options.lora)
    options = settled(options, source, target)
    destination = out or default_output(checkpoint, options)
    if out is None:  # the name of the output tells the format, and that may be the checkpoint's
        _check_before(checkpoint, destination, options)
    target = checks.caching(target, options)
    beforehand = source.notes + text_files.check(checkpoint, source.config)
    told = _tell(beforehand, progress)
    text = read_calibration(checkpoint, options)
    options, quant_plan = mixed(source, options, target, progress, text, destination.parent)
    progress.stage("running the passes")
    lowered = lower(source.config, source.shapes, options, target)
    if options.stop_after is not None:
        return CompileReport(None, {}, beforehand, time.monotonic() - started, peak_rss(), told)
    planned = target.plan(lowered.entries, lowered.bounds)
    of_codes = kept.notes(source, planned.recipes)
    beforehand, told = beforehand + of_codes, told + _tell(of_codes, progress)
    with repeat.telling_kernel(options.target):
        emission = target.emit(planned)
    checks.check_extras(options, emission, checkpoint)
    file = weights.lay_out(planned.recipes)
    run = journal.Run.of(source, options, file.header)
    begun = artifact.interrupted(destination, run, options.restart)
    left = artifact.sweep(destination, begun)
    with (
        repeat.telling_kernel(options.target),
        artifact.writing(destination, options.overwrite, begun) as folder,
        source.hashing() as hashes,  # beside kernels and weights, which leave a CPU free now and then
    ):
        plan = contents.whole_plan(lowered, planned, emission.dispatches)
        artifact.write_json(folder / "plan.json", plan.to_json())  # before the kernels, which name it
        progress.stage("building kernels", emission.kernel_files or len(emission.levels))
        emission.write_kernels_for(folder / "plan.json", folder / "kernels", progress.advance)
        read = kept.Reader(source, planned.recipes)
        kernels = packing.Kernels.of(planned.recipes.values(), source.plain, read.in_codes)
        with journal.opened(folder.parent / JOURNAL, run, folder / journal.WEIGHTS) as begun_with:
            if begun_with.nbytes:
                share = f"{size(begun_with.nbytes)} of {size(file.tensor_bytes)}"
                said = f"goes on where an interrupted run stopped: {share} of weights are written and right"
                _tell((said,), progress)
            place = folder / journal.WEIGHTS
            with weights.writing(file, place, read, progress.advance, begun_with, kernels) as writer:
                log = contents.write_weights(
                    writer, lowered, text, options, source.config, destination.parent, progress
                )
        text_files.settle(checkpoint, folder, source.config)
        if emission.write_graphs is not None:
            progress.stage("writing graphs")
            emission.write_graphs(folder, contents.places(file), source.config.to_dict())
        if quant_plan is not None:
            (folder / quant_plan_file.NAME).write_text(quant_plan.text(), encoding="utf-8")
        progress.stage("hashing")
        manifest = contents.manifest(source, options, emission, file, plan, lowered, hashes())
        notes = [*beforehand, *log.notes()]
        notes += kept.loss_notes(planned.recipes, writer.losses)
        if quant_plan is not None:
            manifest["quantization"] |= {"bits_per_weight": round(quant_plan.bits(), 3)}  # of the linear ones
        if log.entries:
            assert text is not None, "nothing is logged without a text"
            manifest["quantization"] |= log.manifest(text)
            artifact.write_json(folder / contents.ROUNDING, {"matrices": log.table()})
        if options.sparsity_threshold:
            manifest["quantization"]["sparsity"] = {"threshold": options.sparsity_threshold, **log.sparsity()}
        artifact.write_json(folder / MANIFEST, manifest)  # the further forms are made from it
        for name in options.emit:
            progress.stage(f"emitting {name}")
            notes += emission.extras[name](folder) or ()
        manifest |= {"notes": notes}
        files = artifact.file_table(folder)
        artifact.write_json(folder / MANIFEST, manifest | {"files": files})
        artifact.check_loads(folder, options.target)
        if options.measure is not None:
            manifest |= {"quality": measuring.figures(folder, checkpoint, options, compile_checkpoint, progress)}
            artifact.write_json(folder / MANIFEST, manifest | {"files": files})
    took, has_tokenizer = time.monotonic() - started, (destination / sides.TOKENIZER).is_file()
    return CompileReport(destination, manifest, (*notes, *left), took, peak_rss(), told, has_tokenizer)


def _check_before(checkpoint: Path, out: Path, options: CompileOptions) -> None:
    """Raises what is found wrong before any work."""
    if options.stop_after is None:
        artifact.check_free(out, options.overwrite)
        checks.check_apart(out, options)
        measuring.check(checkpoint, options)


def takes_text(options: CompileOptions) -> bool:
    """Whether weights are rounded for a text: one that is given, or ours."""
    return options.calibration is not None or choice.wants_text(options.resolved_method)


def read_calibration(checkpoint: Path, options: CompileOptions) -> CalibrationText | None:
    """The text that weights are rounded for; None where none is wanted. Raises CalibrationError and CheckpointError."""
    if not takes_text(options):
        return None
    tokenizer = text_files.tokenizer_of(checkpoint)
    return calibration_text.read(options.calibration, tokenizer, options.calibration_tokens)


def _tell(notes: tuple[str, ...], progress: Progress) -> int:
    """How many of the notes were told."""
    if not isinstance(progress, Teller):
        return 0
    for note in notes:
        progress.tell(f"note: {note}")
    return len(notes)


def settled(options: CompileOptions, source: Checkpoint, target: Target) -> CompileOptions:
    """The options with the formats named that keep what the checkpoint has in codes.

    Where others meet activations of int8, a format that has float products reads prompts more slowly, from VNNI on
    several times: it is for those who ask for it.
    """

    def suits(format: WeightFormat) -> bool:
        fast = format.integer_products or not target.integer_activations
        return fast and checks.supports(target, format, MATRIX_OPERANDS)

    return kept.settle(options, source, suits)


def default_output(checkpoint: Path, options: CompileOptions) -> Path:
    format = kept.formats(options)[0] if options.quant_plan is None else "mixed"
    model = "+".join((model_name(checkpoint), *(adapter.name for adapter in options.lora)))
    return Path("artifacts") / f"{model}-{format}-{options.target.split(':')[0]}"


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


def mixed(
    source: Checkpoint,
    options: CompileOptions,
    target: Target,
    progress: Progress,
    text: CalibrationText | None,
    folder: Path | None = None,
    costing: costs.Measure = costs.measured,
) -> tuple[CompileOptions, QuantPlan | None]:
    """The options with the formats that a plan gives to single weights, or that are found for a budget; and the plan.

    text: what weights are rounded for. folder: for activations that do not fit into memory, where it is there. costing:
    what formats are found by. Raises PlanError, BudgetError, and what reading the calibration raises.
    """
    if options.quant != AUTO and options.quant_plan is None:
        return options, None
    progress.stage("looking at the weights")
    graphs = float_graphs(source.config, source.shapes, options)

    def file_bytes(chosen: CompileOptions) -> int:
        lowered = lower(source.config, source.shapes, replace(chosen, stop_after=None, dump_to=None), target)
        return weights.lay_out(target.plan(lowered.entries, lowered.bounds).recipes).nbytes

    place = folder if folder is not None and folder.is_dir() else None
    options, plan = mixing.settled(source, graphs, options, target, progress, file_bytes, text, place, costing)
    checks.check_formats(options)
    checks.check_supported(options, target)
    return options, plan


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


def peak_rss() -> int:
    """Largest resident set so far of this process and of those it started, in bytes."""
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak if sys.platform == "darwin" else peak * 1024  # kB on Linux, bytes on macOS
