"""What each weight costs in each format: measured on the model's outputs, on those of its matrices, or on the weight.

A model that fits into memory is evaluated in numpy on some text. Of a weight the KL divergence is measured in one
format, and carried over to the others by the error of its products: both grow with the square of what rounding changes.
A larger one is calibrated for that: of each matrix the error of its outputs is told when it is met.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.checkpoint.sides import usable_tokenizer
from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Graph, Value, topological_order
from dsv3c.compiler.core.ops.weight import decoded
from dsv3c.compiler.core.pieces import is_stacked, part
from dsv3c.compiler.driver import calibrated, text_files
from dsv3c.compiler.formats.elements import Array, as_float32
from dsv3c.compiler.formats.quant import stored
from dsv3c.compiler.formats.table import FORMATS, WeightFormat
from dsv3c.compiler.options import PAGE_SIZE, CompileOptions
from dsv3c.compiler.quantisation.calibration import blas
from dsv3c.compiler.quantisation.calibration import text as calibration_text
from dsv3c.compiler.quantisation.calibration.text import CalibrationText
from dsv3c.compiler.quantisation.output_errors import OutputErrors
from dsv3c.compiler.quantisation.quant_plan import Weight
from dsv3c.compiler.quantisation.sensitivity import HIDDEN, Experiment, step_inputs
from dsv3c.passes.quantise import Quantise
from dsv3c.runtime.progress import Progress

MAIN, DRAFT = "decode", "mtp"  # entries of a model; prefill computes what decode does
DRAFT_SHARE = 0.1  # a draft that is wrong costs time and no quality
SEQUENCES, LENGTH = 4, 128
EVALUABLE = 400_000_000  # numbers of a model whose activations and weights are kept in memory at once
_REFERENCE_BITS = 4.0
_SAMPLED_EXPERTS, _SAMPLED = 4, 1 << 17  # numbers of a weight, that its own error is told from
_MARK = Quantise("int8", head="float32", embedding="float32")  # what has codes is looked at: linear weights

Sizes = Mapping[str, Mapping[str, int]]  # bytes by the names of weight and format
_Errors = Mapping[str, Mapping[str, float]]  # of weights, likewise


@dataclass(frozen=True)
class Costs:
    """By the names of weight and format, for formats that are worth their bytes; measure says what they are."""

    by_weight: Mapping[str, Mapping[str, float]]
    measure: str


Measure = Callable[
    [
        Checkpoint,
        Mapping[str, Graph],
        Sequence[Weight],
        Sizes,
        CompileOptions,
        CalibrationText | None,
        Progress,
        Path | None,
    ],
    Costs,
]


def measured(
    source: Checkpoint,
    graphs: Mapping[str, Graph],
    weights: Sequence[Weight],
    sizes: Sizes,
    options: CompileOptions,
    text: CalibrationText | None,
    progress: Progress,
    folder: Path | None,
) -> Costs:
    """The costs of `weights` in the formats that `sizes` has for each, but for those that lose more than others of no
    more bytes, by the error of some rows.

    text: what weights will be rounded for, if for any. folder: for activations that do not fit into memory. Raises what
    reading the calibration raises.
    """
    progress.stage("measuring what weights lose", len(weights))
    errors = {}
    for weight in weights:
        errors[weight.name] = _weight_errors(source, weight, sizes[weight.name])
        progress.advance()
    large = sum(weight.parameters for weight in weights) > EVALUABLE
    if large and text is not None:
        return _by_matrix_outputs(source, graphs, weights, errors, text, progress, folder)
    tokens = None if large else _tokens(source, options)
    if tokens is None:
        return _by_weight_error(graphs, weights, errors)
    return _by_outputs(source, graphs, weights, errors, tokens, progress)


def unread(
    source: Checkpoint,
    graphs: Mapping[str, Graph],
    weights: Sequence[Weight],
    sizes: Sizes,
    options: CompileOptions,
    text: CalibrationText | None,
    progress: Progress,
    folder: Path | None,
) -> Costs:
    """As `measured`, of weights that are not here, as if their numbers were normal ones: for sizes alone."""
    rows = [np.random.default_rng(0).standard_normal((64, 1024), dtype=np.float32)]
    errors = {name: _weight_error(rows, FORMATS[name]) for name in {name for of in sizes.values() for name in of}}
    worth = {weight.name: _worth(sizes[weight.name], errors) for weight in weights}
    return replace(_by_weight_error(graphs, weights, worth), measure="relative square error of normal numbers")


def experiments(source: Checkpoint, graphs: Mapping[str, Graph], tokens: Array) -> dict[str, Experiment]:
    """The main model, and its draft module where it has one, on tokens i32 [S, L]."""
    inputs = step_inputs(tokens, PAGE_SIZE)
    main = Experiment(graphs[MAIN], inputs, source.read, PAGE_SIZE)
    found = {MAIN: main}
    if DRAFT in graphs:
        # It is given the next token and what the model made of this one.
        following = np.roll(tokens, -1, axis=1)
        drafting = {**step_inputs(following, PAGE_SIZE), HIDDEN: main.result(HIDDEN)}
        found[DRAFT] = Experiment(graphs[DRAFT], drafting, source.read, PAGE_SIZE)
    return found


def by_error(experiment: Experiment, weight: Weight, formats: Sequence[str]) -> dict[str, float]:
    """The KL divergence that a weight costs in each format: measured in one, the others by the error of products."""
    reference = min(formats, key=lambda name: abs(FORMATS[name].bits_per_weight() - _REFERENCE_BITS))
    errors = {name: experiment.error(experiment.rounded(weight, FORMATS[name])) for name in formats}
    if not errors[reference]:
        return errors
    scale = experiment.kl(experiment.rounded(weight, FORMATS[reference])) / errors[reference]
    return {name: scale * error for name, error in errors.items()}


def _by_outputs(
    source: Checkpoint,
    graphs: Mapping[str, Graph],
    weights: Sequence[Weight],
    errors: _Errors,
    tokens: Array,
    progress: Progress,
) -> Costs:
    progress.stage("measuring what formats cost", len(weights))
    with blas.threads(1):  # products are small; and sums in one order make the same choice again
        models = experiments(source, graphs, tokens)
        found = {}
        for weight in weights:
            found[weight.name] = _cost(models, weight, list(errors[weight.name]))
            progress.advance()
    measure = f"KL divergence of the logits in nats, on {tokens.size} tokens"
    return Costs(found, f"{measure}; of a draft module {DRAFT_SHARE:g} times" if DRAFT in models else measure)


def _cost(models: Mapping[str, Experiment], weight: Weight, formats: Sequence[str]) -> dict[str, float]:
    entry = next(name for name, model in models.items() if any(map(model.has, weight.recipes)))
    share = DRAFT_SHARE if entry == DRAFT else 1.0
    return {name: share * cost for name, cost in by_error(models[entry], weight, formats).items()}


def _by_matrix_outputs(
    source: Checkpoint,
    graphs: Mapping[str, Graph],
    weights: Sequence[Weight],
    errors: _Errors,
    text: CalibrationText,
    progress: Progress,
    folder: Path | None,
) -> Costs:
    """The relative error of the outputs, by what the matrices of a weight meet when the model reads the text."""
    evaluated = calibrated.plan({name: _MARK.run(graphs[name])[0] for name in (MAIN, DRAFT) if name in graphs})
    seen = OutputErrors({recipe: list(errors[weight.name]) for weight in weights for recipe in weight.recipes})
    progress.stage("measuring what formats cost", calibrated.matrix_count(evaluated))
    calibrated.look(evaluated, text, partial(_evaluated, source), seen.look, folder, progress)
    shares = _shares(graphs, weights)
    found = {}
    for weight in weights:
        costs = seen.relative(weight.recipes) or errors[weight.name]
        found[weight.name] = {name: shares[weight.name] * cost for name, cost in costs.items() if math.isfinite(cost)}
    return Costs(found, f"relative square error of the outputs, on {text.tokens} tokens")


def _by_weight_error(graphs: Mapping[str, Graph], weights: Sequence[Weight], errors: _Errors) -> Costs:
    """The relative error of the weights themselves, of a sample of their rows."""
    shares = _shares(graphs, weights)
    found = {
        weight.name: {name: shares[weight.name] * error for name, error in errors[weight.name].items()}
        for weight in weights
    }
    return Costs(found, "relative square error of the weight")


def _shares(graphs: Mapping[str, Graph], weights: Sequence[Weight]) -> dict[str, float]:
    """What the errors of each weight count."""
    main = set(graphs[MAIN].values())
    return {weight.name: 1.0 if main & set(weight.recipes) else DRAFT_SHARE for weight in weights}


def _evaluated(source: Checkpoint, value: Value) -> Any:
    """What an expression over the checkpoint's tensors stands for."""

    def given(leaf: Value) -> Any:
        name, expert = str(leaf.attrs["name"]), leaf.attrs.get("expert")
        return source.read(name) if expert is None else source.part(name, int(expert))  # type: ignore[arg-type]

    return ops.evaluate([value], given)[0]


def _weight_errors(source: Checkpoint, weight: Weight, sizes: Mapping[str, int]) -> dict[str, float]:
    """The relative error of some rows in formats that are worth their bytes."""
    rows = _sample(source, weight.recipes[0])
    return _worth(sizes, {name: _weight_error(rows, FORMATS[name]) for name in sizes})


def _worth(sizes: Mapping[str, int], errors: Mapping[str, float]) -> dict[str, float]:
    """The errors in formats from the smallest on, each of which loses less than all before."""
    found: dict[str, float] = {}
    least = math.inf
    for name in sorted(sizes, key=lambda name: (sizes[name], errors[name])):
        if errors[name] < least:
            found[name] = least = errors[name]
    return found


def _weight_error(rows: Sequence[Array], format: WeightFormat) -> float:
    apart = sum(float(np.square(decoded(stored(part, format)) - part).sum(dtype=np.float64)) for part in rows)
    power = sum(float(np.square(part).sum(dtype=np.float64)) for part in rows)
    return apart / power if power else 0.0


def _sample(source: Checkpoint, recipe: Value) -> list[Array]:
    """Rows of a weight [.., N, K], of a few of its experts or heads."""
    stacked = any(map(is_stacked, topological_order([recipe])))
    count = int(recipe.shape[0])
    picked = range(0, count, -(-count // _SAMPLED_EXPERTS))
    pieces = [part(recipe, index) for index in picked] if stacked else [recipe]

    found = []
    for piece in pieces:
        whole = _evaluated(source, piece)
        rows = as_float32(whole).reshape(-1, whole.shape[-1])
        kept = max(1, _SAMPLED // (len(pieces) * rows.shape[1]))
        found.append(rows[:: -(-len(rows) // kept)])
    return found


def _tokens(source: Checkpoint, options: CompileOptions) -> Array | None:
    """Some of the calibration's text, of ours where none is given; None where the checkpoint has no tokenizer."""
    if options.calibration is None and usable_tokenizer(source.path) is None:
        return None
    return text_windows(source.path, options.calibration, options.calibration_tokens)


def text_windows(
    checkpoint: Path, text: Path | None, limit: int, sequences: int = SEQUENCES, length: int = LENGTH
) -> Array:
    """Windows of a text from all over it, i32 [sequences, length]. Raises CalibrationError and CheckpointError."""
    found = calibration_text.read(text, text_files.tokenizer_of(checkpoint), limit)
    ids = np.concatenate(found.sequences)
    starts = np.linspace(0, len(ids) - length, sequences).astype(int)
    return np.stack([ids[start : start + length] for start in starts])
