"""Record the model as IR graphs."""

from __future__ import annotations

from collections.abc import Mapping

from dsv3c.compiler.checkpoint.config import ModelConfig
from dsv3c.compiler.core import ops
from dsv3c.compiler.core.caches import SLOTS, cache_name
from dsv3c.compiler.core.chosen import experts_name
from dsv3c.compiler.core.ir import Dim, Graph, TensorType, Value
from dsv3c.compiler.core.storage import memory_owner
from dsv3c.compiler.formats.coded_rows import LARGEST, CodedRows
from dsv3c.compiler.frontend import model

Shapes = Mapping[str, tuple[int, ...]]


def trace(config: ModelConfig, shapes: Shapes, page_size: int, cache_dtype: str = "f32") -> Graph:
    """The main model as graph `step`: results logits, hidden, the written caches under their own names, and of each
    layer with experts those that tokens visit.

    shapes: the logical tensors of the checkpoint, stacked experts under their `*` name.
    """
    step, weight, op = _step(page_size), _params(shapes), ops.Recorder()
    caches = [_cache(config, layer, cache_dtype) for layer in range(config.num_hidden_layers)]
    output = model.forward(op, config, weight, step, caches)
    graph = _graph("step", output)
    chosen = ((experts_name(layer), experts) for layer, experts in output.experts.items())
    return Graph(graph.name, (*graph.results, *chosen))


def trace_mtp(config: ModelConfig, shapes: Shapes, page_size: int, depth: int, cache_dtype: str = "f32") -> Graph:
    """Multi-token prediction module `depth` as graph `mtp`, with the further input hidden [T, hidden_size].

    Which experts its tokens visit is no result, as these are guesses."""
    layer = config.num_hidden_layers + depth
    hidden = ops.leaf("input", "hidden", TensorType("f32", ("T", config.hidden_size)))
    cache = _cache(config, layer, cache_dtype)
    output = model.forward_mtp(ops.Recorder(), config, _params(shapes), depth, _step(page_size), hidden, cache)
    return _graph("mtp", output)


def _graph(name: str, output: model.StepOutput) -> Graph:
    caches = ((str(memory_owner(cache).attrs["name"]), cache) for cache in output.caches)
    return Graph(name, (("logits", output.logits), ("hidden", output.hidden), *caches))


def _step(page_size: int) -> model.StepInputs:
    def ids(name: str, *shape: Dim) -> Value:
        return ops.leaf("input", name, TensorType("i32", shape))

    tokens, positions, sequence = (ids(name, "T") for name in ("tokens", "positions", "sequence"))
    return model.StepInputs(tokens, positions, sequence, ids("page_table", "S", "P"), ids("rows", "R"), page_size)


def _cache(config: ModelConfig, layer: int, dtype: str) -> Value:
    """The latent rows of a layer; those of codes have a scale for the latent and one for the key."""
    dtype = CodedRows(dtype, config.kv_lora_rank).type_name if dtype in LARGEST else dtype
    return ops.leaf("input", cache_name(layer), TensorType(dtype, (SLOTS, config.latent_dim)))


def _params(shapes: Shapes) -> model.Weights:
    def param(name: str) -> Value:
        return ops.leaf("param", name, TensorType("f32", shapes[name]))

    return param
