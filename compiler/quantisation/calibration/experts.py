"""The experts of a layer, one by one: each meets the rows that the model's own routing sends it, then they are mixed.

Two products for each expert, of which the second meets what comes out of the first. No more than one expert a worker is
in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from dsv3c.compiler.core.ops.moe import pair_experts
from dsv3c.compiler.core.ops.primitive import evaluate_sigmoid
from dsv3c.compiler.core.ops.table import Array
from dsv3c.compiler.quantisation.calibration.statistics import blocks, matrix_inputs
from dsv3c.compiler.quantisation.inputs import MatrixInputs

Item = TypeVar("Item")
Result = TypeVar("Result")


class Weight(NamedTuple):
    """plain: as the checkpoint has it, f32. rounded: as it is stored, decoded; None where inputs are not corrected."""

    plain: Array
    rounded: Array | None


# (expert, which of its two products, what it meets, why that is its layer's and not its own) -> the weight, now written
RoundExpert = Callable[[int, int, MatrixInputs, str], Weight]


@dataclass(frozen=True)
class Routed:
    """Rows and routing in one of the models. rows [T, D]; experts [T, k+s] of each token, and what each counts, mix."""

    rows: Array
    experts: Array
    mix: Array

    def tokens(self, expert: int) -> tuple[Array, Array]:
        """The tokens that visit an expert, rising, and what it counts for them."""
        tokens, place = np.nonzero(self.experts == expert)
        return tokens, self.mix[tokens, place]


def routed(rows: Array, orders: Iterable[Array], weights: Array, n_experts: int) -> Routed:
    """orders: the vector of `expert_order` for each sequence; weights [T, k] of all of them."""
    found = []
    for order in orders:
        places = order.shape[1] - 2 * n_experts - 2
        found.append(pair_experts(order, n_experts, len(order) * places).reshape(-1, places))
    experts = np.concatenate(found)
    shared = np.ones((len(experts), experts.shape[1] - weights.shape[1]), np.float32)
    return Routed(rows, experts, np.concatenate([weights, shared], axis=1))


class _Done(NamedTuple):
    """What is left of an expert: its rows of the output, for each model, and what its second product met."""

    outputs: tuple[tuple[Array, Array], ...]
    second: MatrixInputs


def visit_experts(
    models: Sequence[Routed],
    n_experts: int,
    enough: Callable[[int], int],
    round: RoundExpert,
    outputs: Sequence[Array],
    pool: Executor,
    ahead: int,
) -> list[int]:
    """Round all experts and add what they put out to `outputs` [T, D], one for each of `models`; none are wanted where
    that is empty. Returns how many tokens each expert saw.

    models: the float model; behind it, where inputs are corrected, the model as it is rounded so far. enough: of tokens
    for the statistics of K inputs; experts that saw fewer come last, with those of all others. ahead: experts in
    memory at a time. The order of sums does not depend on the workers.
    """
    seen = models[-1]
    counts = [int((seen.experts == expert).sum()) for expert in range(n_experts)]
    needed = enough(seen.rows.shape[1])
    rich = [expert for expert in range(n_experts) if counts[expert] >= needed]
    poor = [expert for expert in range(n_experts) if counts[expert] < needed]
    layer: list[MatrixInputs | None] = [None, None]
    if poor:
        layer[0] = matrix_inputs(seen.rows)

    def work(expert: int) -> _Done:
        few = f"it saw {counts[expert]} tokens of {needed}" if counts[expert] < needed else ""
        return _visit(expert, models, layer if few else (), few, round, bool(outputs))

    def run(experts: list[int]) -> Iterator[tuple[int, MatrixInputs]]:
        for expert, done in zip(experts, in_order(pool, work, experts, ahead), strict=True):
            for output, (tokens, rows) in zip(outputs, done.outputs, strict=False):
                output[tokens] += rows
            yield expert, done.second

    second = _Mean()
    for expert, inputs in run(rich):
        if poor:
            second.add(counts[expert], inputs)
    layer[1] = second.inputs()
    for _ in run(poor):
        pass
    return counts


def _visit(
    expert: int,
    models: Sequence[Routed],
    layer: Sequence[MatrixInputs | None],
    few: str,
    round: RoundExpert,
    wanted: bool,
) -> _Done:
    """layer: what both products meet on the whole, taken where it is given; few: why."""
    plain, seen, corrected = models[0], models[-1], len(models) > 1
    of_layer = dict(enumerate(layer))
    tokens, mix = seen.tokens(expert)
    met = of_layer.get(0) or matrix_inputs(seen.rows[tokens], plain.rows[tokens] if corrected else None)
    first = round(expert, 0, met, few)
    # The float model routes a few tokens elsewhere; those of both are computed once.
    plain_tokens, plain_mix = plain.tokens(expert) if corrected else (tokens, mix)
    union = np.union1d(tokens, plain_tokens) if corrected else tokens
    h = _gated(plain.rows, union, first.plain)
    h_seen = h if first.rounded is None else _gated(seen.rows, tokens, first.rounded)
    own = matrix_inputs(h_seen, h[np.searchsorted(union, tokens)] if corrected else None)
    second = round(expert, 1, of_layer.get(1) or own, few)
    if not wanted:
        return _Done((), own)
    found = [(plain_tokens, _mixed(h[np.searchsorted(union, plain_tokens)], second.plain, plain_mix))]
    if corrected and second.rounded is not None:
        found.append((tokens, _mixed(h_seen, second.rounded, mix)))
    return _Done(tuple(found), own)


def _gated(rows: Array, tokens: Array, weight: Array) -> Array:
    """silu(gate) * up of some of the rows, for a weight [2, I, D]."""
    result = np.empty((len(tokens), weight.shape[1]), np.float32)
    for block in blocks(len(tokens)):
        x = rows[tokens[block]]
        gate, up = x @ weight[0].T, x @ weight[1].T
        result[block] = gate * evaluate_sigmoid(gate) * up
    return result


def _mixed(h: Array, weight: Array, mix: Array) -> Array:
    found = h @ weight.T
    found *= mix[:, None]
    return found


class _Mean:
    """The statistics of several experts taken together."""

    def __init__(self) -> None:
        self._tokens = 0
        self._sum: Array | None = None

    def add(self, tokens: int, inputs: MatrixInputs) -> None:
        part = inputs.gram * np.float32(tokens)
        self._sum = part if self._sum is None else self._sum + part
        self._tokens += tokens

    def inputs(self) -> MatrixInputs | None:
        return None if self._sum is None else MatrixInputs(self._tokens, self._sum / np.float32(self._tokens))


def in_order(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """Results in the order of `items`, of which no more than `ahead` are begun before theirs is taken."""
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
            waiting.append(pool.submit(function, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
