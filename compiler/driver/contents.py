"""What stands in an artifact beside kernels: its plan, its weights, what its manifest says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dsv3c.runtime
from dsv3c.compiler.checkpoint import Checkpoint, ModelConfig, model_name
from dsv3c.compiler.core.ir import Value
from dsv3c.compiler.core.ops.weight import format_of
from dsv3c.compiler.core.target import Emission, FileRange, Planned
from dsv3c.compiler.driver import artifact, calibrated, kept, weights
from dsv3c.compiler.driver.lowering import Lowered
from dsv3c.compiler.driver.rounding_log import RoundingLog
from dsv3c.compiler.driver.sizes import model_parts
from dsv3c.compiler.formats.quant import QTensor
from dsv3c.compiler.options import PAGE_SIZE, CompileOptions
from dsv3c.compiler.quantisation import choice
from dsv3c.compiler.quantisation import quant_plan as quant_plan_file
from dsv3c.compiler.quantisation.calibration.text import CalibrationText
from dsv3c.compiler.quantisation.choice import Outcome
from dsv3c.compiler.quantisation.quant_plan import QuantPlan
from dsv3c.runtime.artifact.artifact import FORMAT_VERSION
from dsv3c.runtime.artifact.dispatches import Table
from dsv3c.runtime.artifact.plan import Bounds, Plan
from dsv3c.runtime.progress import Progress

ROUNDING = "rounding.json"  # of each matrix: by which method, with what error


def whole_plan(lowered: Lowered, planned: Planned, dispatches: Table | None) -> Plan:
    """The plan of the artifact: what the target planned, how kernels are launched, and what the compiler knows."""
    bounds = Bounds(**lowered.bounds)
    sizes = (bounds, PAGE_SIZE, planned.arena_bytes)
    return Plan(*sizes, planned.buffers, planned.entries, planned.costs, dispatches)


def places(file: weights.WeightFile) -> dict[str, FileRange]:
    return {each.name: FileRange(each.offset, each.component.nbytes) for part in file.tensors.values() for each in part}


def write_weights(
    writer: weights.Writer,
    lowered: Lowered,
    text: CalibrationText | None,
    options: CompileOptions,
    config: ModelConfig,
    folder: Path,
    progress: Progress,
) -> RoundingLog:
    """Write all weights. folder: for activations that do not fit into memory."""
    method = options.resolved_method
    if text is None:
        log = RoundingLog(method)
        progress.stage("writing weights", writer.bytes_left)
    else:
        planned = calibrated.plan(lowered.graphs)
        log = calibrated.write(writer, planned, text, method, config, folder, progress, options.sparsity_threshold)
    unknown = choice.SEARCH if method == choice.SEARCH else choice.NEAREST  # where nothing is known of the inputs

    def round(value: Value, w: Any) -> tuple[QTensor, list[Any]]:
        inputs = choice.uniform(w.shape[-1])
        made, outcomes = choice.round_weight(
            w, format_of(value.type), unknown, [inputs], threshold=options.sparsity_threshold
        )
        log.count(outcomes)
        return made, [outcome.noted() for outcome in outcomes]

    def recall(notes: list[Any]) -> None:
        log.count([Outcome.of(noted) for noted in notes])

    writer.write_rest(round if unknown != choice.NEAREST or options.sparsity_threshold else None, recall)
    return log


def manifest(
    source: Checkpoint,
    options: CompileOptions,
    emission: Emission,
    file: weights.WeightFile,
    plan: Plan,
    lowered: Lowered,
    hashes: Mapping[str, str],
    rounded: Mapping[str, Any],
) -> dict[str, Any]:
    """hashes: of the checkpoint's files. rounded: what `rounding` says."""
    return {
        "format_version": FORMAT_VERSION,
        "dsv3c_version": dsv3c.runtime.__version__,
        "model": {"name": model_name(source.path), **source.config.to_dict()},
        "source": source.provenance(hashes),
        "target": {"name": options.target, "levels": [dict(level) for level in emission.levels], **emission.facts},
        "quantization": {
            "weights": " + ".join(kept.formats(options)),
            "head": options.resolved_head_quant,
            "embedding": options.resolved_embed_quant,
            "cache": " + ".join(dict.fromkeys(cache.format for cache in lowered.caches)),
            **({"formats": dict(options.formats)} if options.formats else {}),
            **rounded,
        },
        "weights": {"parts": {name: asdict(part) for name, part in model_parts(source.config, file).items()}},
        "memory": {
            "weights_bytes": file.nbytes,
            "arena_bytes": plan.arena_bytes,
            "cache_bytes_per_token": lowered.cache_bytes_per_token,
        },
        "passes": {name: dict(counts) for name, counts in lowered.rewrites.items()},
        "options": options.to_dict(),
    }


def rounding(
    folder: Path,
    log: RoundingLog,
    text: CalibrationText | None,
    options: CompileOptions,
    quant_plan: QuantPlan | None,
) -> dict[str, Any]:
    """What the manifest says of how weights were rounded; the files that have it matrix by matrix are written."""
    found: dict[str, Any] = {}
    if quant_plan is not None:
        (folder / quant_plan_file.NAME).write_text(quant_plan.text(), encoding="utf-8")
        found["bits_per_weight"] = round(quant_plan.bits(), 3)  # of the linear ones
    if log.entries:
        assert text is not None, "nothing is logged without a text"
        found |= log.manifest(text)
        artifact.write_json(folder / ROUNDING, {"matrices": log.table()})
    if options.sparsity_threshold:
        found["sparsity"] = {"threshold": options.sparsity_threshold, **log.sparsity()}
    return found
