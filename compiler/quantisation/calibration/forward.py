"""The model on the sequences of a text, stage by stage, in numpy: each matrix is rounded by what it meets.

The float model is computed as the graph says; where a method corrects what earlier layers did to the inputs, so is the
model as it is rounded so far, beside it. What waits for later stages is kept for all sequences, and of weights only
those that the present stage multiplies with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.caches import SLOTS, is_cache
from dsv3c.compiler.core.ir import Value, dim_size
from dsv3c.compiler.core.ops.table import Array
from dsv3c.compiler.core.ops.weight import decoded
from dsv3c.compiler.core.pieces import part
from dsv3c.compiler.formats.elements import as_float32
from dsv3c.compiler.formats.quant import stored
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.options import PAGE_SIZE
from dsv3c.compiler.quantisation.calibration import blas
from dsv3c.compiler.quantisation.calibration.experts import Weight, in_order, routed, visit_experts
from dsv3c.compiler.quantisation.calibration.stages import Experts, FloatGraph, Matrix, Stage
from dsv3c.compiler.quantisation.calibration.statistics import matrix_inputs
from dsv3c.compiler.quantisation.calibration.store import Store
from dsv3c.compiler.quantisation.inputs import MatrixInputs


class RoundMatrix(Protocol):
    """Rounds a weight and writes it: the value it has as a whole, the index of the expert it belongs to, its numbers
    [..., N, K], what its matrices meet, one for each or one for all, and why that is its layer's and not its own.

    Returns what the stored codes stand for. Called from several threads.
    """

    def __call__(
        self, weight: Value, expert: int | None, w: Array, inputs: Sequence[MatrixInputs], few: str
    ) -> Callable[[], Array]: ...


@dataclass(frozen=True)
class Sequences:
    """Token ids of each, and what a graph is given besides: by the name of the input, for each sequence."""

    tokens: Sequence[Array]
    given: Mapping[str, Sequence[Array]]

    def bounds(self) -> list[dict[str, int]]:
        """Sizes of the symbolic dims of the graph for each sequence, which is a step of its own."""
        return [_bounds(len(tokens)) for tokens in self.tokens]

    def inputs(self, index: int) -> Callable[[Value], Array]:
        tokens = self.tokens[index]
        bounds = _bounds(len(tokens))
        every = np.arange(len(tokens), dtype=np.int32)
        known: dict[str, Array] = {
            "tokens": tokens,
            "positions": every,
            "rows": every,
            "sequence": np.zeros(len(tokens), np.int32),
            "page_table": np.arange(bounds["P"], dtype=np.int32)[None],
        }

        def given(leaf: Value) -> Array:
            if is_cache(leaf):  # in float32: what rounds the cache is not the weights' matter
                return np.zeros([dim_size(dim, bounds) for dim in leaf.shape], np.float32)
            name = str(leaf.attrs["name"])
            return known[name] if name in known else self.given[name][index]

        return given


def _bounds(tokens: int) -> dict[str, int]:
    pages = -(-tokens // PAGE_SIZE)
    return {"T": tokens, "R": tokens, "S": 1, "P": pages, SLOTS: pages * PAGE_SIZE}


# Told how many tokens each expert of a layer saw.
Saw = Callable[[Experts, list[int]], None]


@dataclass(frozen=True)
class _Model:
    """One of the two, with what of it is kept."""

    sequences: Sequences
    store: Store


class Forward:
    """evaluate: gives what an expression over the checkpoint's tensors stands for. enough: how many tokens the
    statistics of K inputs want. folder: for what does not fit into memory; None: the system's place.

    sequences: what the float model is given; behind it, where inputs are corrected, what the model is given that is
    rounded so far.
    """

    def __init__(
        self,
        source: FloatGraph,
        sequences: Sequence[Sequences],
        evaluate: Callable[[Value], Any],
        round: RoundMatrix,
        enough: Callable[[int], int],
        folder: Path | None = None,
    ) -> None:
        self._source = source
        self._models = [_Model(given, Store(given.bounds(), folder)) for given in sequences]
        self._evaluate = evaluate
        self._round = round
        self._enough = enough

    def run(self, stages: Iterable[Stage], saw: Saw) -> None:
        """Go through all stages."""
        workers = os.cpu_count() or 1
        with ThreadPoolExecutor(workers) as pool:
            for stage in stages:
                self._stage(stage, saw, pool, workers)

    def _stage(self, stage: Stage, saw: Saw, pool: Executor, workers: int) -> None:
        """No weight outlives its stage. One matrix has all threads, matrices side by side have one each."""
        weights = {matrix.weight: self._matrix(matrix, stage) for matrix in stage.matrices}
        with blas.threads(1):
            for experts in stage.experts:
                saw(experts, self._experts(experts, experts.down in stage.mixed, pool, workers))
            self._values(stage, weights, pool, workers)
        for value in stage.dropped:
            for model in self._models:
                model.store.drop(value)

    def kept(self, value: Value, model: int) -> list[Array]:
        """What is kept to the end, for each sequence."""
        store, sequences = self._models[model].store, self._models[model].sequences
        return [store.of(value, index) for index in range(len(sequences.tokens))]

    @property
    def _corrected(self) -> bool:
        return len(self._models) > 1

    def _matrix(self, matrix: Matrix, stage: Stage) -> Weight | None:
        """Round a matrix; its numbers, where the stage multiplies with it."""
        rows = self._models[-1].store.rows(matrix.rows)
        plain = self._models[0].store.rows(matrix.rows) if self._corrected else None
        w = self._evaluate(matrix.weight)
        decode = self._round(matrix.weight, None, w, list(_met(rows, plain, w.shape, self._tokens)), "")
        if matrix.weight not in stage.operands:
            return None
        return Weight(as_float32(w), decode() if self._corrected else None)

    @property
    def _tokens(self) -> int:
        return sum(map(len, self._models[0].sequences.tokens))

    def _experts(self, experts: Experts, wanted: bool, pool: Executor, workers: int) -> list[int]:
        n_experts = int(experts.down.inputs[3].shape[0])
        models = [
            routed(
                model.store.rows(experts.rows),
                [model.store.of(experts.order, index) for index in range(len(model.sequences.tokens))],
                model.store.rows(experts.weights),
                n_experts,
            )
            for model in self._models
        ]
        outputs = []
        if wanted:
            shape = [int(dim) for dim in experts.down.shape[1:]]
            outputs = [model.store.make(experts.down, shape, np.dtype(np.float32)) for model in self._models]
            for output in outputs:
                output[:] = 0

        def round(expert: int, product: int, inputs: MatrixInputs, few: str) -> Weight:
            reader, at = ((experts.gate_up, 2), (experts.down, 3))[product]
            weight = reader.inputs[at]
            if not self._source.has_codes(reader, at):
                return self._weight(part(weight, expert), self._source.formats.get((reader, at)))
            w = self._evaluate(part(weight, expert))
            decode = self._round(weight, expert, w, [inputs], few)
            return Weight(as_float32(w), decode() if self._corrected else None)

        return visit_experts(models, n_experts, self._enough, round, outputs, pool, workers + 1)

    def _values(self, stage: Stage, products: Mapping[Value, Weight | None], pool: Executor, workers: int) -> None:
        """Compute what a stage keeps, sequence by sequence."""
        if not stage.kept:
            return
        formats = {
            operand: self._source.formats[value, position]
            for value in stage.values
            for position, operand in enumerate(value.inputs)
            if (value, position) in self._source.formats
        }
        found = {
            operand: products.get(operand) or self._weight(operand, formats.get(operand)) for operand in stage.operands
        }
        for number, model in enumerate(self._models):
            known = {operand: weight.plain if number == 0 else weight.rounded for operand, weight in found.items()}

            def sequence(index: int, model: _Model = model, known: Mapping[Value, Any] = known) -> None:
                kept = {value: model.store.of(value, index) for value in stage.reads}
                results = ops.evaluate(list(stage.kept), model.sequences.inputs(index), {**known, **kept})
                for value, rows in zip(stage.kept, results, strict=True):
                    model.store.put(value, index, rows)

            sequence(0)  # the places of all are made with it
            for _ in in_order(pool, sequence, range(1, len(model.sequences.tokens)), workers + 1):
                pass

    def _weight(self, operand: Value, format: WeightFormat | None) -> Weight:
        """A weight that no statistics are gathered for: a norm, a table, or one of plain floats."""
        found = self._evaluate(operand)
        plain = as_float32(found)
        as_stored = plain if format is None or not self._corrected else decoded(stored(found, format))
        return Weight(plain, as_stored)


def _met(rows: Array, plain: Array | None, shape: tuple[int, ...], tokens: int) -> Iterator[MatrixInputs]:
    """What a weight [N, K] or [H, N, K] meets; rows: in the model as it is rounded, plain: in the float model if that
    differs.

    Caches have rows that no token wrote: they are zeros.
    """
    if rows.ndim == 3:
        for head in range(shape[0]):
            yield matrix_inputs(rows[:, head], None if plain is None else plain[:, head], tokens)
    else:
        width = shape[-1]
        yield matrix_inputs(rows[:, :width], None if plain is None else plain[:, :width], tokens)
