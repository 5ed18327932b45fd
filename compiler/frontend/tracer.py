"""Record the model as IR graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dsv3c.compiler.checkpoint.config import ModelConfig
from dsv3c.compiler.core import ops
from dsv3c.compiler.core.chosen import experts_name
from dsv3c.compiler.core.ir import Dim, Graph, TensorType, Value
from dsv3c.compiler.frontend import model
from dsv3c.compiler.frontend.caches import CacheRow, cache_rows, main_cache_rows

Shapes = Mapping[str, tuple[int, ...]]


def trace(config: ModelConfig, shapes: Shapes, page_size: int, cache_dtype: str = "f32") -> Graph:
    """The main model as graph `step`: results logits, hidden, the written caches under their own names, and of each
    layer with experts those that tokens visit.

    shapes: the logical tensors of the checkpoint, stacked experts under their `*` name.
    """
    step, weight, op = _step(page_size), _params(shapes), ops.Recorder()
    output = model.forward(op, config, weight, step, _caches(main_cache_rows(config), cache_dtype))
    graph = _graph("step", output)
    chosen = ((experts_name(layer), experts) for layer, experts in output.experts.items())
    return Graph(graph.name, (*graph.results, *chosen))


def trace_mtp(config: ModelConfig, shapes: Shapes, page_size: int, depth: int, cache_dtype: str = "f32") -> Graph:
    """Multi-token prediction module `depth` as graph `mtp`, with the further input hidden [T, hidden_size].

    Which experts its tokens visit is no result, as these are guesses."""
    layer = config.num_hidden_layers + depth
    hidden = ops.leaf("input", "hidden", TensorType("f32", ("T", config.hidden_size)))
    caches = _caches(cache_rows(config, layer), cache_dtype)
    output = model.forward_mtp(ops.Recorder(), config, _params(shapes), depth, _step(page_size), hidden, caches)
    return _graph("mtp", output)


def _graph(name: str, output: model.StepOutput) -> Graph:
    return Graph(name, (("logits", output.logits), ("hidden", output.hidden), *output.caches.items()))


def _step(page_size: int) -> model.StepInputs:
    def ids(name: str, *shape: Dim) -> Value:
        return ops.leaf("input", name, TensorType("i32", shape))

    tokens, positions, sequence = (ids(name, "T") for name in ("tokens", "positions", "sequence"))
    return model.StepInputs(tokens, positions, sequence, ids("page_table", "S", "P"), ids("rows", "R"), page_size)


def _caches(rows: Sequence[CacheRow], dtype: str) -> dict[str, Value]:
    return {row.name: ops.leaf("input", row.name, row.type(dtype)) for row in rows}


def _params(shapes: Shapes) -> model.Weights:
    def param(name: str) -> Value:
        return ops.leaf("param", name, TensorType("f32", shapes[name]))

    return param
