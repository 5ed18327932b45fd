"""From fused graphs to ONNX models over one weights file, and the plan of what a step reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

from dsv3c.compiler.core.caches import cache_of, caches_of, is_cache
from dsv3c.compiler.core.chosen import chosen_experts, experts_name
from dsv3c.compiler.core.ir import Graph, Value, is_weight
from dsv3c.compiler.core.storage import aligned
from dsv3c.compiler.core.target import Emission, EntryGraph, FileRange, Planned
from dsv3c.runtime.artifact import plan as stored
from dsv3c.runtime.artifact.plan import Buffer
from dsv3c.targets.calls.recipes import Recipes
from dsv3c.targets.onnx import attention, experts, sparse
from dsv3c.targets.onnx.builder import CONTRIB, ELEMENTS, OPSET, Builder, Reference
from dsv3c.targets.onnx.genai import write_config
from dsv3c.targets.onnx.lower import RULES, Lowering, Rule, linear

WEIGHTS = "weights.safetensors"
FILES = {"decode": "model.onnx", "mtp": "mtp.onnx"}
IR_VERSION = 11  # the last one before opset 24; ONNX Runtime 1.23 reads it
# The products that are made in float32, whatever activations are: of these, choices are made.
_OF_CHOICES: Mapping[str, Callable[[Value], Value]] = {
    "router": lambda value: value.inputs[0],
    "index_topk": lambda value: value.inputs[1],
}
CHECKED_WITH = "1.31.1"  # the version of ONNX Runtime that the tests ran with
ROUTING: Mapping[str, Rule] = {
    "router": experts.router,
    "router_weights": experts.router_weights,
    "expert_weights": experts.expert_weights,
    "identity_experts": experts.identity_experts,
}
ALL_RULES: Mapping[str, Rule] = {
    **RULES,
    **ROUTING,
    "index_write": sparse.write,
    "mla_write": attention.write,
    "moe_down": experts.experts,
}
ATTEND: Mapping[str, Callable[[Lowering, attention.Layer], str]] = {
    "mla_absorbed": attention.attend,
    "mla_sparse": sparse.attend,
}
# Emitted with the operations that read them.
READ_BY_OTHERS = ("const", "mla_absorbed", "mla_sparse", "moe_gate_up", "expert_order")


@dataclass(frozen=True)
class OnnxModel:
    """One ONNX model whose initialisers are references into the weights file."""

    proto: onnx.ModelProto
    references: Mapping[str, Reference]

    def write(self, path: Path, places: Mapping[str, FileRange]) -> None:
        """Adds the references and writes the model; raises what `onnx.checker` does."""
        graph = self.proto.graph
        graph.initializer.extend(_external(item, places[item.tensor]) for item in self.references.values())
        path.write_bytes(self.proto.SerializeToString())
        onnx.checker.check_model(str(path), full_check=True)


def _external(reference: Reference, place: FileRange) -> TensorProto:
    tensor = TensorProto(name=reference.name, data_type=ELEMENTS[reference.dtype], dims=reference.shape)
    tensor.data_location = TensorProto.EXTERNAL
    where = {"location": WEIGHTS, "offset": place.offset + reference.offset, "length": reference.nbytes}
    for key, value in where.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def plan(entries: Mapping[str, EntryGraph], bounds: Mapping[str, int], accuracy_level: int) -> Planned:
    """What a step of the runtime reads and writes, and the weights that the models refer to."""
    recipes = Recipes()
    _models(entries, recipes, accuracy_level)
    buffers, listed, arena_bytes = _plan({name: entries[name] for name in entries if name in FILES}, bounds)
    return Planned(entries, bounds, arena_bytes, buffers, listed, recipes.by_name)


def emit(planned: Planned, provider: str, accuracy_level: int) -> Emission:
    """One model for the main graph, both forms of attention in it, and one for the MTP layer if there is one."""
    models = _models(planned.graphs, Recipes(), accuracy_level)

    def write_graphs(folder: Path, places: Mapping[str, FileRange], config: Mapping[str, Any]) -> None:
        for name, model in models.items():
            model.write(folder / FILES[name], places)
        caches = caches_of([planned.graphs["decode"].graph])
        if not any(cache.part for cache in caches):  # it has no place for caches beside the latents
            write_config(folder, FILES["decode"], provider, config, caches[0].width)

    facts = {
        "provider": provider,
        "onnxruntime": CHECKED_WITH,
        "opset": {"ai.onnx": OPSET, CONTRIB: 1},
        "graphs": {name: FILES[name] for name in models},
    }
    return Emission((), _no_kernels, write_graphs=write_graphs, facts=facts)


def _no_kernels(folder: Path, advance: Callable[[int], None]) -> None:
    pass


def _models(entries: Mapping[str, EntryGraph], recipes: Recipes, accuracy_level: int) -> dict[str, OnnxModel]:
    prefill = entries.get("prefill", entries.get(f"{stored.SHORT}prefill"))
    return {
        name: _model(name, entry, prefill if name == "decode" else None, recipes, accuracy_level)
        for name, entry in entries.items()
        if name in FILES
    }


def _model(
    name: str, entry: EntryGraph, prefill: EntryGraph | None, recipes: Recipes, accuracy_level: int
) -> OnnxModel:
    graph = entry.graph
    caches = {_past_name(value): value for value in graph.values() if is_cache(value)}
    dtype = next(value.dtype for value in graph.values() if value.op == "mla_write")  # activations have that of rows
    lowering = Lowering(Builder(dtype, recipes), accuracy_level)
    b = lowering.b
    inputs = _inputs(lowering, graph.values(), caches)
    # An input with an initialiser may be left out.
    b.initializers["num_logits_to_keep"] = numpy_helper.from_array(np.array([0], np.int64), "num_logits_to_keep")
    _lower(lowering, entry, prefill)
    outputs = [*_outputs(lowering, dict(graph.results), caches), *_experts(lowering, graph)]
    proto = helper.make_model(
        helper.make_graph(b.nodes, "model" if name == "decode" else name, inputs, outputs, [*b.initializers.values()]),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)],
        ir_version=IR_VERSION,
        producer_name="dsv3c",
    )
    return OnnxModel(proto, b.references)


def _past_name(value: Value) -> str:
    """The input for a cache; dsv3c.runtime.devices.onnx.device looks for this name."""
    cache = cache_of(value)
    return f"past_key_values.{cache.layer}.{cache.part or 'key'}"


def _inputs(lowering: Lowering, values: Iterable[Value], caches: Mapping[str, Value]) -> list[ValueInfoProto]:
    """The inputs of the model, under the names that loops over exported models know."""
    b = lowering.b
    ids, activations = TensorProto.INT64, ELEMENTS[b.dtype]
    found = [
        helper.make_tensor_value_info("input_ids", ids, ["batch", "sequence"]),
        helper.make_tensor_value_info("attention_mask", ids, ["batch", "total"]),
        helper.make_tensor_value_info("position_ids", ids, ["batch", "sequence"]),
        helper.make_tensor_value_info("num_logits_to_keep", ids, [1]),
    ]
    for value in values:
        if value.op != "input":
            continue
        name = str(value.attrs["name"])
        if name == "tokens":
            lowering.names[value] = b.reshape("input_ids", -1)
        if name == "positions":
            lowering.names[value] = b.reshape("position_ids", -1)
        if name == "hidden":
            width = int(value.shape[1])
            found.append(helper.make_tensor_value_info("hidden_states", activations, ["batch", "sequence", width]))
            lowering.names[value] = b.reshape("hidden_states", -1, width)
        if name == "rows":
            lowering.names[value] = "num_logits_to_keep"
    for past, value in caches.items():
        lowering.names[value] = past
        shape: list[Any] = ["batch", 1, "past", cache_of(value).width]
        found.append(helper.make_tensor_value_info(past, ELEMENTS[value.dtype], shape))
    return found


def _lower(lowering: Lowering, entry: EntryGraph, prefill: EntryGraph | None) -> None:
    values, memo = entry.graph.values(), dict[Value, bool]()
    materialized = [value for value in prefill.graph.values() if value.op == "mla_materialized"] if prefill else []
    layers: dict[Value, attention.Layer] = {}
    for value in values:
        if value.op == "head_linear" and value.inputs[0].op in ATTEND:
            # Both graphs list their layers in order.
            other = materialized[len(layers)] if materialized else None
            layers[value] = attention.Layer(value, other, prefill.min_tokens if prefill else None)
    inside = {value.inputs[0].inputs[0] for value in layers}
    exact = {_OF_CHOICES[value.op](value) for value in values if value.op in _OF_CHOICES}
    asked = sparse.asked(entry.graph)

    def lower(some: Iterable[Value]) -> None:
        for value in some:
            if not is_weight(value, memo) and value.op not in (*READ_BY_OTHERS, "input") and value not in inside:
                lowering.names[value] = lowered(value)

    def lowered(value: Value) -> str:
        if value in layers:
            return ATTEND[value.inputs[0].op](lowering, layers[value])
        if value in exact:
            x = lowering.b.cast(lowering[value.inputs[0]], lowering.b.dtype, "f32")
            return linear(lowering, x, value.inputs[1], "f32")
        if value.op == "index_topk":
            return sparse.choose(lowering, value, lambda: lower(asked[value]))
        return ALL_RULES[value.op](lowering, value)

    later = {value for found in asked.values() for value in found}
    lower(value for value in values if value not in later)


def _outputs(lowering: Lowering, results: Mapping[str, Value], caches: Mapping[str, Value]) -> list[ValueInfoProto]:
    b = lowering.b
    logits, hidden = results["logits"], results["hidden"]
    apart = lowering.shaped(lowering[logits], lowering.batch(), -1, int(logits.shape[1]))
    b.node("Cast", apart, out="logits", to=TensorProto.FLOAT)
    states = lowering.shaped(lowering[hidden], lowering.batch(), lowering.length(), int(hidden.shape[1]))
    b.node("Cast", states, out="last_hidden_state", to=TensorProto.FLOAT)
    found = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "kept", int(logits.shape[1])]),
        helper.make_tensor_value_info(
            "last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", int(hidden.shape[1])]
        ),
    ]
    for past, value in caches.items():
        shape: list[Any] = ["batch", 1, "total", cache_of(value).width]
        present = past.replace("past_key_values", "present")
        found.append(helper.make_tensor_value_info(present, ELEMENTS[value.dtype], shape))
    return found


def _experts(lowering: Lowering, graph: Graph) -> list[ValueInfoProto]:
    """The outputs that say which experts tokens visit, under the names of the results."""
    found = []
    for layer, value in chosen_experts(graph).items():
        lowering.b.node("Identity", lowering[value], out=experts_name(layer))
        shape: list[Any] = ["tokens", int(value.shape[1])]
        found.append(helper.make_tensor_value_info(experts_name(layer), TensorProto.INT64, shape))
    return found


def _plan(
    graphs: Mapping[str, EntryGraph], bounds: Mapping[str, int]
) -> tuple[tuple[Buffer, ...], dict[str, stored.Entry], int]:
    """Buffers, entries and bytes of the arena; what happens between input and output is in the models."""
    limits = stored.Bounds(**bounds)
    buffers = [Buffer(name, "input", "int32", size) for name, size in limits.step_inputs().items()]
    results, outputs, at = dict(graphs["decode"].graph.results), {}, 0
    for name in ("logits", "hidden"):
        rows, width = results[name].shape
        outputs[name] = stored.Output(len(buffers), str(rows))
        size = outputs[name].count(limits.T, limits.R) * int(width)
        buffers.append(Buffer(name, "arena", "float32", size, at))
        at += aligned(buffers[-1].bytes)
    entries, experts = {}, {}
    for layer, value in chosen_experts(graphs["decode"].graph).items():
        experts[layer] = len(buffers)
        buffers.append(Buffer(experts_name(layer), "arena", "int32", limits.T * int(value.shape[1]), at))
        at += aligned(buffers[-1].bytes)
    for name, entry in graphs.items():
        given, inputs = {str(value.attrs["name"]): value for value in entry.graph.values() if value.op == "input"}, {}
        if "hidden" in given:
            inputs["hidden"] = len(buffers)
            buffers.append(Buffer("hidden_in", "input", "float32", limits.T * int(results["hidden"].shape[1])))
        mine = experts if chosen_experts(entry.graph) else {}
        entries[name] = stored.Entry(name, (), outputs, inputs, entry.min_tokens, limits.T, experts=mine)
        caches = caches_of([entry.graph])
        buffers += [Buffer(cache.name, "cache", cache.dtype, 0, width=cache.width) for cache in caches]
    return tuple(buffers), entries, at
