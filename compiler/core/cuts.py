"""Where an entry can be cut in two: before a layer, all that is left of the layers below is the residual stream.

So two devices can share a model: one runs the calls below a cut, the other the calls above it, with the residual stream
as an input. What depends on no layer, such as the table of rotary angles, both compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dsv3c.compiler.core.caches import cache_of
from dsv3c.compiler.core.ir import Graph, Value
from dsv3c.compiler.core.storage import memory_owner

_NO_LAYER = -1


@dataclass(frozen=True)
class GraphCut:
    """A cut before one layer: the calls from `first` on are above it; of those before, `kept` belong to both sides.

    residual: f32 [T, hidden_size], made below and read above.
    """

    residual: Value
    first: int
    kept: tuple[int, ...]


def cuts(graph: Graph, calls: Mapping[Value, Sequence[int]]) -> list[GraphCut]:
    """A cut before each of the layers 0, 1, …; none at all in a graph whose layers do more than follow one another.

    calls: the numbers of the calls that each value became.
    """
    residuals = _residuals(graph)
    layer_of = _layers(graph, residuals)
    starts: dict[Value, int] = {value: layer for layer, value in enumerate(residuals)}
    first, kept, last = dict[int, int](), set[Value](), _NO_LAYER
    for value in graph.values():
        layer, numbers = layer_of[value], calls.get(value, ())
        if layer == _NO_LAYER:
            continue
        if numbers:
            if layer < last:
                return []
            last = layer
            first.setdefault(layer, numbers[0])
        for operand in value.inputs:
            if layer_of[operand] == _NO_LAYER:
                kept.add(operand)
            elif layer_of[operand] != layer and starts.get(operand) != layer:
                return []
    kept_calls = sorted(number for value in _with_operands(kept - starts.keys()) for number in calls.get(value, ()))
    return [
        GraphCut(residual, first[layer], tuple(number for number in kept_calls if number < first[layer]))
        for layer, residual in enumerate(residuals)
    ]


def _residuals(graph: Graph) -> list[Value]:
    """What each layer begins with: the operand of its first norm, from which its row of the cache comes."""
    inputs: dict[int, Value] = {}
    for value in graph.values():
        if value.op != "mla_write" or (cache := cache_of(memory_owner(value))).part:
            continue
        _, source, *_ = value.inputs
        while source.op != "rms_norm" and source.inputs:
            source = source.inputs[0]
        if source.op == "rms_norm":
            inputs[cache.layer] = memory_owner(source.inputs[0])
    # Layers that are not numbered from 0, as that of multi-token prediction, begin with more than the residual.
    return [inputs[layer] for layer in range(len(inputs))] if inputs.keys() == set(range(len(inputs))) else []


def _layers(graph: Graph, residuals: Sequence[Value]) -> dict[Value, int]:
    """The layer that makes each value: the highest whose residual it depends on, which belongs to the layer below."""
    read_by = {value: layer for layer, value in enumerate(residuals)}
    layers: dict[Value, int] = {}
    for value in graph.values():
        layers[value] = max((read_by.get(operand, layers[operand]) for operand in value.inputs), default=_NO_LAYER)
    return layers


def _with_operands(values: set[Value]) -> set[Value]:
    found, waiting = set[Value](), list(values)
    while waiting:
        value = waiting.pop()
        if value not in found:
            found.add(value)
            waiting += value.inputs
    return found
