"""The whole compilation: checkpoint, trace, passes, target, artifact."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dsv3c import targets
from dsv3c.compiler.checkpoint import Checkpoint, hub, model_name, sides
from dsv3c.compiler.core.target import Target
from dsv3c.compiler.driver import (
    artifact,
    checks,
    contents,
    costs,
    journal,
    kept,
    lowering,
    measuring,
    mixing,
    packing,
    repeat,
    text_files,
    weights,
)
from dsv3c.compiler.driver.rounding_log import RoundingLog
from dsv3c.compiler.driver.workplace import JOURNAL
from dsv3c.compiler.formats.keeping import Loss
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.options import AUTO, CompileOptions
from dsv3c.compiler.quantisation import choice
from dsv3c.compiler.quantisation.calibration import text as calibration_text
from dsv3c.compiler.quantisation.calibration.text import CalibrationText
from dsv3c.compiler.quantisation.quant_plan import QuantPlan
from dsv3c.passes.quantise import MATRIX_OPERANDS
from dsv3c.runtime.artifact.artifact import MANIFEST
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
    lowered = lowering.lower(source.config, source.shapes, options, target)
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
        log, losses = _write_weights(folder, file, source, lowered, text, options, run, progress)
        text_files.settle(checkpoint, folder, source.config)
        if emission.write_graphs is not None:
            progress.stage("writing graphs")
            emission.write_graphs(folder, contents.places(file), source.config.to_dict())
        progress.stage("hashing")
        rounded = contents.rounding(folder, log, text, options, quant_plan)
        manifest = contents.manifest(source, options, emission, file, plan, lowered, hashes(), rounded)
        notes = [*beforehand, *log.notes()]
        notes += kept.loss_notes(planned.recipes, losses)
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


def _write_weights(
    folder: Path,
    file: weights.WeightFile,
    source: Checkpoint,
    lowered: lowering.Lowered,
    text: CalibrationText | None,
    options: CompileOptions,
    run: journal.Run,
    progress: Progress,
) -> tuple[RoundingLog, dict[str, Loss]]:
    """Write those that an interrupted run has not written; what rounding did, and what codes lost, by recipe."""
    place, read = folder / journal.WEIGHTS, kept.Reader(source, file.recipes)
    kernels = packing.Kernels.of(file.recipes.values(), source.plain, read.in_codes)
    with journal.opened(folder.parent / JOURNAL, run, place) as begun_with:
        if begun_with.nbytes:
            share = f"{size(begun_with.nbytes)} of {size(file.tensor_bytes)}"
            _tell((f"goes on where an interrupted run stopped: {share} of weights are written and right",), progress)
        with weights.writing(file, place, read, progress.advance, begun_with, kernels) as writer:
            log = contents.write_weights(writer, lowered, text, options, source.config, folder.parent, progress)
    return log, writer.losses


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
    graphs = lowering.float_graphs(source.config, source.shapes, options)

    def file_bytes(chosen: CompileOptions) -> int:
        lowered = lowering.lower(source.config, source.shapes, replace(chosen, stop_after=None, dump_to=None), target)
        return weights.lay_out(target.plan(lowered.entries, lowered.bounds).recipes).nbytes

    place = folder if folder is not None and folder.is_dir() else None
    options, plan = mixing.settled(source, graphs, options, target, progress, file_bytes, text, place, costing)
    checks.check_formats(options)
    checks.check_supported(options, target)
    return options, plan


def peak_rss() -> int:
    """Largest resident set so far of this process and of those it started, in bytes."""
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak if sys.platform == "darwin" else peak * 1024  # kB on Linux, bytes on macOS
