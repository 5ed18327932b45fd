"""Rounding weights by what they meet: the model runs on a text, and a weight is written when its inputs are known."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from dsv3c.compiler.checkpoint import ModelConfig
from dsv3c.compiler.checkpoint.parts import part_of
from dsv3c.compiler.core.ir import Graph, Value, topological_order
from dsv3c.compiler.core.ops.table import Array
from dsv3c.compiler.core.ops.weight import format_of
from dsv3c.compiler.core.pieces import Piece, part
from dsv3c.compiler.driver.rounding_log import RoundingLog
from dsv3c.compiler.driver.weights import Writer, naming_range, quantized_in
from dsv3c.compiler.formats.elements import as_float32
from dsv3c.compiler.formats.quant import QTensor
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.quantisation import choice
from dsv3c.compiler.quantisation.calibration import blas
from dsv3c.compiler.quantisation.calibration.forward import Forward, RoundMatrix, Saw, Sequences
from dsv3c.compiler.quantisation.calibration.stages import (
    Experts,
    FloatGraph,
    Matrix,
    Stage,
    float_graph,
    in_stages,
    latent_products,
    products,
)
from dsv3c.compiler.quantisation.calibration.text import CalibrationText
from dsv3c.compiler.quantisation.choice import Outcome
from dsv3c.compiler.quantisation.folding import Folding
from dsv3c.compiler.quantisation.input_scales import ScaleSearch
from dsv3c.compiler.quantisation.inputs import MatrixInputs
from dsv3c.runtime.progress import Progress


class Calibrated(NamedTuple):
    """An entry in the order in which its matrices are rounded."""

    graph: FloatGraph
    stages: list[Stage]


@dataclass(frozen=True)
class CalibrationPlan:
    """The main model, and the layer of multi-token prediction, which goes on from the main model's `hidden`."""

    main: Calibrated
    mtp: Calibrated | None


class _Use(NamedTuple):
    """A recipe that stores a weight: `quantized` is the `quantize` in it, of the weight or of its rows in another
    order."""

    recipe: str
    whole: Value
    quantized: Value


Uses = Mapping[Value, Sequence[_Use]]
Evaluate = Callable[[Value], Any]  # what an expression over the checkpoint's tensors stands for
_SCALES = "scales of inputs"
_UNSCALED = "what its inputs come from can not take scales"


def plan(entries: Mapping[str, Graph]) -> CalibrationPlan:
    """What is evaluated for the entries; a weight of several is rounded for the first of them."""
    graphs = {name: float_graph(graph) for name, graph in entries.items()}
    main = graphs["decode"]
    wanted: list[Matrix | Experts] = [*products(main)]
    for name, graph in graphs.items():
        if name not in ("decode", "mtp"):
            wanted += _new(latent_products(graph, main), wanted)
    mtp = graphs.get("mtp")
    results = [] if mtp is None else [main.graph.result("hidden")]
    first = Calibrated(main, in_stages(main, wanted, results))
    if mtp is None:
        return CalibrationPlan(first, None)
    further = _new(products(mtp), wanted)
    return CalibrationPlan(first, Calibrated(mtp, in_stages(mtp, further)))


def _new(found: Iterable[Matrix | Experts], known: Sequence[Matrix | Experts]) -> list[Matrix | Experts]:
    """Those whose weights are not among the known."""
    before = {item.weight for item in known if isinstance(item, Matrix)}
    return [item for item in found if isinstance(item, Experts) or item.weight not in before]


def write(
    writer: Writer,
    planned: CalibrationPlan,
    text: CalibrationText,
    method: str,
    config: ModelConfig,
    folder: Path,
    progress: Progress,
    threshold: float = 0.0,
) -> RoundingLog:
    """Write all that the plan rounds. folder: for activations that do not fit into memory. threshold: as in choice."""
    log = RoundingLog(method)
    uses = _uses(writer.file.recipes, planned)
    folding = None
    if choice.folds(method):
        folding = Folding()
        writer.read_through(folding.reading)
        _find_scales(writer, planned, text, config, folder, uses, folding, progress)
    rounder = _Rounder(writer, uses, method, log, config.num_hidden_layers, threshold, folding)
    models = 2 if choice.corrects(method) else 1
    progress.stage("calibrating and writing weights", writer.bytes_left)
    _run(planned, text, writer.evaluate, rounder.round, rounder.saw, models, folder)
    return log


def look(
    planned: CalibrationPlan,
    text: CalibrationText,
    evaluate: Evaluate,
    see: RoundMatrix,
    folder: Path | None,
    progress: Progress,
) -> None:
    """Show every matrix to `see`, with what it meets in the float model; each is a step of the progress."""

    def seen(
        weight: Value, expert: int | None, w: Array, inputs: Sequence[MatrixInputs], few: str
    ) -> Callable[[], Array]:
        found = see(weight, expert, w, inputs, few)
        progress.advance()
        return found

    _run(planned, text, evaluate, seen, lambda *_: None, 1, folder)


def matrix_count(planned: CalibrationPlan) -> int:
    """How many matrices `look` shows; those of an expert's two products are one each."""
    entries = [entry for entry in (planned.main, planned.mtp) if entry is not None]
    return sum(_count(entry.graph, stage) for entry in entries for stage in entry.stages)


def _count(graph: FloatGraph, stage: Stage) -> int:
    products = [(value, at) for experts in stage.experts for value, at in ((experts.gate_up, 2), (experts.down, 3))]
    coded = (value.inputs[at] for value, at in products if graph.has_codes(value, at))
    return len(stage.matrices) + sum(int(weight.shape[0]) for weight in coded)


def _find_scales(
    writer: Writer,
    planned: CalibrationPlan,
    text: CalibrationText,
    config: ModelConfig,
    folder: Path,
    uses: Uses,
    folding: Folding,
    progress: Progress,
) -> None:
    """Put the scales of inputs into `folding`: all of them, before anything is written, since what produces the inputs
    of a matrix is written before it."""
    formats = {weight: {format_of(use.quantized.type) for use in found} for weight, found in uses.items()}
    # A run that goes on must take the same: part of them is in the file, and sums may differ in their last bits.
    known = writer.kept(_SCALES)
    search = ScaleSearch(config, formats, folding, known)
    mtp = None if planned.mtp is None else _with_routers(planned.mtp)
    seen = CalibrationPlan(_with_routers(planned.main), mtp)
    progress.stage("looking for scales of inputs", matrix_count(seen))
    look(seen, text, writer.evaluate, search.look, folder, progress)
    found = search.fold()
    if known is None:
        writer.note(_SCALES, found)


def _with_routers(calibrated: Calibrated) -> Calibrated:
    """With the routers among the matrices: they meet all rows, before each expert meets its own."""
    read = {experts.rows for stage in calibrated.stages for experts in stage.experts}
    linears = [value for value in calibrated.graph.graph.values() if value.op == "linear" and value.inputs[0] in read]
    routers = {value.inputs[0]: Matrix(value.inputs[1], value.inputs[0]) for value in linears}

    def added(stage: Stage) -> Stage:
        found = tuple(routers[experts.rows] for experts in stage.experts)
        return replace(stage, matrices=(*found, *stage.matrices))

    return Calibrated(calibrated.graph, [added(stage) for stage in calibrated.stages])


def _run(
    planned: CalibrationPlan,
    text: CalibrationText,
    evaluate: Evaluate,
    round: RoundMatrix,
    saw: Saw,
    models: int,
    folder: Path | None,
) -> None:
    """Show every matrix to `round`. models: 2 for the float one and beside it the one that is rounded so far."""

    def run(calibrated: Calibrated, sequences: Sequence[Sequences]) -> Forward:
        forward = Forward(calibrated.graph, sequences, evaluate, round, choice.enough_tokens, folder)
        forward.run(calibrated.stages, saw)
        return forward

    main = run(planned.main, [Sequences(text.sequences, {})] * models)
    if planned.mtp is not None:
        hidden = planned.main.graph.graph.result("hidden")
        run(planned.mtp, [_shifted(text, main.kept(hidden, model)) for model in range(models)])


def _shifted(text: CalibrationText, hidden: Sequence[Array]) -> Sequences:
    """What multi-token prediction is given: each token's state, and the token that follows it."""
    return Sequences([tokens[1:] for tokens in text.sequences], {"hidden": [rows[:-1] for rows in hidden]})


class _Rounder:
    """Rounds weights, and writes them wherever a recipe stores them."""

    def __init__(
        self,
        writer: Writer,
        uses: Uses,
        method: str,
        log: RoundingLog,
        num_hidden_layers: int,
        threshold: float,
        folding: Folding | None,
    ) -> None:
        self._writer = writer
        self._method = method
        self._log = log
        self._layers = num_hidden_layers
        self._threshold = threshold
        self._uses = uses
        self._folding = folding

    def round(
        self, weight: Value, expert: int | None, w: Array, inputs: Sequence[MatrixInputs], few: str
    ) -> Callable[[], Array]:
        """As forward.RoundMatrix."""
        piece = weight if expert is None else part(weight, expert)
        uses = self._uses.get(weight, ())
        kept = self._kept(uses, expert, weight, piece)
        if kept is not None:
            return kept
        few = few or self._unscaled(piece)
        made: dict[WeightFormat, QTensor] = {}
        for use in uses:
            format, logged = format_of(use.quantized.type), list[Outcome]()
            if format not in made:
                with naming_range(piece, self._writer.given), _each(inputs) as each:
                    made[format], logged = choice.round_weight(
                        w, format, self._method, inputs, few, self._threshold, each
                    )
                self._add(use, expert, piece, logged)
            note = [outcome.noted() for outcome in logged]
            self._writer.write(*_stored(use, expert, piece, made[format]), note)
        return lambda: next((codes.dequantize() for codes in made.values()), as_float32(w))

    def _unscaled(self, piece: Value) -> str:
        """Why a method that scales inputs can't do so for this weight."""
        if self._folding is None:
            return ""
        tensors = (leaf.attrs for leaf in topological_order([piece]) if leaf.op == "param")
        known = any(self._folding.multiplies(str(of["name"]), of.get("expert")) for of in tensors)  # type: ignore[arg-type]
        return "" if known else _UNSCALED

    def _kept(
        self, uses: Sequence[_Use], expert: int | None, weight: Value, piece: Value
    ) -> Callable[[], Array] | None:
        """What an earlier run made of a weight, if all of it is in the file; the log gets what was noted of it."""
        places = [_place(use, expert) for use in uses]
        notes = [self._writer.kept(place.name) for place in places]
        plain = next((at for at, use in enumerate(uses) if use.quantized.inputs[0] == weight), None)
        if plain is None or places[plain].value.op != "pack" or any(note is None for note in notes):
            return None
        for use, note in zip(uses, notes, strict=True):
            self._add(use, expert, piece, [Outcome.of(each) for each in note])
        for place in places:
            self._writer.write(place, {})
        return lambda: self._writer.read_back(places[plain])

    def _add(self, use: _Use, expert: int | None, piece: Value, outcomes: Sequence[Outcome]) -> None:
        self._log.count(outcomes)
        self._log.add(use.recipe, (expert or 0) * len(outcomes), self._part(piece), outcomes)

    def saw(self, experts: Experts, tokens: list[int]) -> None:
        names = [use.recipe for use in self._uses.get(experts.down.inputs[3], ())]
        self._log.experts[names[0] if names else str(len(self._log.experts))] = tokens

    def _part(self, piece: Value) -> str:
        leaf = next(leaf for leaf in topological_order([piece]) if leaf.op == "param")
        return part_of(str(leaf.attrs["name"]), self._layers)


@contextmanager
def _each(inputs: Sequence[MatrixInputs]) -> Iterator[choice.Each]:
    """Goes through the matrices of a weight: side by side where each has inputs of its own."""
    if len(inputs) < 2:
        yield map
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool, blas.threads(1):
        yield pool.map


def _weights(stage: Stage) -> Iterator[Value]:
    for matrix in stage.matrices:
        yield matrix.weight
    for experts in stage.experts:
        yield from (experts.gate_up.inputs[2], experts.down.inputs[3])


def _uses(recipes: Mapping[str, Value], planned: CalibrationPlan) -> dict[Value, list[_Use]]:
    """The recipes that store each of the planned weights as codes."""
    calibrated = [each for each in (planned.main, planned.mtp) if each is not None]
    weights = {weight for each in calibrated for stage in each.stages for weight in _weights(stage)}
    found: dict[Value, list[_Use]] = {}
    for recipe, whole in recipes.items():
        for quantized in quantized_in(whole):
            weight = next((value for value in _reordered(quantized) if value in weights), None)
            if weight is not None:
                found.setdefault(weight, []).append(_Use(recipe, whole, quantized))
    return found


def _reordered(quantized: Value) -> Iterator[Value]:
    """What a `quantize` is of, and what that is made of by operations that leave the last axis as it is."""
    value = quantized.inputs[0]
    yield value
    while _keeps_rows(value):
        value = value.inputs[0]
        yield value


def _keeps_rows(value: Value) -> bool:
    if value.op == "reshape":
        return value.shape[-1:] == value.inputs[0].shape[-1:]
    axes = value.attrs.get("axes")
    return value.op == "transpose" and isinstance(axes, tuple) and axes[-1] == len(axes) - 1


def _stored(use: _Use, expert: int | None, weight: Value, codes: QTensor) -> tuple[Piece, dict[Value, QTensor]]:
    """The piece of a recipe that holds a weight, or the weight of an expert, and what its `quantize` is."""
    piece = _place(use, expert)
    found = next(value for value in quantized_in(piece.value) if weight in _reordered(value))
    return piece, {found: _in_order_of(found.inputs[0], weight, codes)}


def _place(use: _Use, expert: int | None) -> Piece:
    if expert is None:
        return Piece(use.recipe, use.whole, 0, 1)
    return Piece(use.recipe, part(use.whole, expert), expert, int(use.whole.shape[0]))


def _in_order_of(value: Value, weight: Value, codes: QTensor) -> QTensor:
    """The codes of `weight` in the order of rows that `value` has them in."""
    if value == weight:
        return codes
    inner = _in_order_of(value.inputs[0], weight, codes)

    def moved(array: Array) -> Array:
        if value.op == "transpose":
            return array.transpose(value.attrs["axes"])  # type: ignore[arg-type]
        return array.reshape(*map(int, value.shape[:-1]), array.shape[-1])

    zero = None if inner.zero is None else moved(inner.zero)
    return QTensor(moved(inner.codes), moved(inner.scale), zero, inner.format, inner.k)
