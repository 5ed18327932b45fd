"""What an ONNX artifact looks like: names, types, external data, operators, configs, refusals."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors import safe_open

from dsv3c import runtime, targets
from dsv3c.compiler.driver.checks import choose_cache_dtype
from dsv3c.compiler.errors import BadOptionError
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.engine.expert_stats import ExpertsUnknown
from dsv3c.targets.onnx import UnknownAccuracyLevel, UnknownOnnxExperts, UnknownOnnxProvider
from tests.conformance.configs import CONFIGS
from tests.runtime.experts import counted as counts
from tests.runtime.experts import visited
from tests.targets.onnx.conftest import Export, Exported

INLINE_BYTES = 1024


def loaded(model: Exported, file: str = "model.onnx") -> onnx.ModelProto:
    return onnx.load(model.folder / file, load_external_data=False)


def nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """All nodes, those of branches too."""
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            found += nodes(attribute.g) if attribute.type == onnx.AttributeProto.GRAPH else []
    return found


@pytest.mark.parametrize("quant", ["float32", "int4-g32-asym"])
def test_full_check_and_strict_shape_inference(quant: str, export: Export, tmp_path: Path) -> None:
    path = export("v3-grouped-yarn", quant).folder / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    onnx.shape_inference.infer_shapes_path(str(path), str(tmp_path / "inferred.onnx"), strict_mode=True)


def test_names_and_axes(export: Export, golden: object) -> None:
    graph = loaded(export("v3-grouped-yarn")).graph
    lines = []
    for kind, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            tensor = value.type.tensor_type
            dims = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
            lines.append(f"{kind} {value.name} {onnx.TensorProto.DataType.Name(tensor.elem_type)} {dims}")
    golden.check("\n".join(lines))  # type: ignore[attr-defined]


def test_operators_by_layer(export: Export) -> None:
    """One If a layer, both forms of attention in it; one QMoE a layer of experts."""
    model = export("v3-grouped-yarn", "int4-g32")
    config = CONFIGS["v3-grouped-yarn"]
    layers, dense = config["num_hidden_layers"], config["first_k_dense_replace"]
    counts = Counter(node.op_type for node in nodes(loaded(model).graph))
    assert counts["If"] == counts["Attention"] == layers
    assert counts["QMoE"] == layers - dense
    assert counts["RotaryEmbedding"] == 2 * layers
    assert not {"Loop", "Scan", "MoEGroupRouter"} & counts.keys()


def test_nothing_is_computed_for_a_choice_where_all_is_chosen(export: Export) -> None:
    """What reads queries of indexers stands in branches; their keys are written always. Attention has both forms."""
    graph = loaded(export("v32-mtp-yarn", index_topk=40)).graph
    layers = CONFIGS["v32-mtp-yarn"]["num_hidden_layers"]
    always = {name for node in graph.node for name in node.input if "indexer." in name}
    anywhere = {name for node in nodes(graph) for name in node.input if "indexer." in name}
    for part, count in {"wq_b": 0, "weights_proj": 0, "wk": layers}.items():
        assert sum(f"indexer.{part}." in name for name in always) == count, part
        assert sum(f"indexer.{part}." in name for name in anywhere) == layers, part
    assert Counter(node.op_type for node in nodes(graph))["Attention"] == layers


@pytest.mark.parametrize(("name", "changes"), [("v3-grouped-yarn", {}), ("v32-mtp-yarn", {"index_topk": 40})], ids=str)
def test_integer_products_stand_in_no_branch_of_a_branch(name: str, changes: dict[str, int], export: Export) -> None:
    """ONNX Runtime would pack their weights anew in every step."""
    subgraphs = [each.g for node in loaded(export(name, "int8", **changes)).graph.node for each in node.attribute]
    counts = [
        [sum(inner.op_type == "MatMulNBits" for inner in of) for of in (graph.node, nodes(graph))]
        for graph in subgraphs
    ]
    assert any(near for near, _ in counts)
    assert all(near == anywhere for near, anywhere in counts)


def test_experts_of_a_width_that_groups_do_not_divide_need_no_contrib_mixture(export: Export) -> None:
    counts = Counter(node.op_type for node in nodes(loaded(export("v3-odd-widths-3-shared", "int4-g32")).graph))
    assert counts["QMoE"] == counts["MoE"] == 0 < counts["MatMulNBits"]


@pytest.mark.parametrize("quant", ["float16", "int8", "int4-g32-asym"])
def test_initialisers_lie_in_the_weights_file(quant: str, export: Export) -> None:
    model = export("v3-grouped-yarn", quant)
    size = (model.folder / "weights.safetensors").stat().st_size
    external = 0
    for tensor in loaded(model).graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        if not where:
            assert len(tensor.raw_data) <= INLINE_BYTES, tensor.name
            continue
        external += 1
        assert where["location"] == "weights.safetensors"
        offset, length = int(where["offset"]), int(where["length"])
        assert offset + length <= size
        assert offset % 64 == 0 or "[" in tensor.name, f"{tensor.name} is whole and starts at {offset}"
    assert external


def test_external_data_are_the_stored_tensors(export: Export) -> None:
    model = export("v3-grouped-yarn", "int8")
    whole = {item.name: item for item in onnx.load(model.folder / "model.onnx").graph.initializer}
    with safe_open(model.folder / "weights.safetensors", "np") as file:
        names = [name for name in file.keys() if name in whole]  # noqa: SIM118 - no mapping
        assert names
        for name in names:
            stored = file.get_tensor(name) if "embed" not in name else None
            if stored is not None:
                np.testing.assert_array_equal(onnx.numpy_helper.to_array(whole[name]), stored, err_msg=name)


def test_manifest_says_what_the_graphs_need(export: Export) -> None:
    model = export("glm-mtp")
    target = json.loads((model.folder / "manifest.json").read_text())["target"]
    assert target["graphs"] == {"decode": "model.onnx", "mtp": "mtp.onnx"}
    assert target["opset"] == {entry.domain or "ai.onnx": entry.version for entry in loaded(model).opset_import}
    assert (target["provider"], target["levels"]) == ("cpu", [])
    assert target["onnxruntime"]
    assert [value.name for value in loaded(model, "mtp.onnx").graph.input][-2:] == [
        "hidden_states",
        "past_key_values.2.key",
    ]


def test_genai_config_names_what_the_graph_has(export: Export) -> None:
    model = export("v3-grouped-yarn")
    content = json.loads((model.folder / "genai_config.json").read_text())["model"]
    graph, decoder = loaded(model).graph, content["decoder"]
    inputs, outputs = ({value.name for value in values} for values in (graph.input, graph.output))
    assert decoder["filename"] == "model.onnx"
    for layer in range(decoder["num_hidden_layers"]):
        assert {name.replace("%d", str(layer)) for name in decoder["inputs"].values()} <= inputs
        assert {name.replace("%d", str(layer)) for name in decoder["outputs"].values()} <= outputs
    (past,) = (value for value in graph.input if value.name == "past_key_values.0.key")
    heads, width = (past.type.tensor_type.shape.dim[axis].dim_value for axis in (1, 3))
    assert (decoder["num_key_value_heads"], decoder["head_size"]) == (heads, width)


def test_keys_of_an_indexer_are_a_cache_that_genai_has_no_place_for(export: Export) -> None:
    model = export("glm-dsa-real-heads")
    pasts = {value.name for value in loaded(model).graph.input if value.name.startswith("past")}
    keys = {f"past_key_values.{layer}.key" for layer in range(3)}
    assert pasts == keys | {f"past_key_values.{layer}.index" for layer in range(2)}, "the last layer has no indexer"
    assert not (model.folder / "genai_config.json").exists()


def test_float16_graph_has_float16_activations(export: Export) -> None:
    model = export("v3-real-heads", "int4-g32", "onnx:provider=cuda,accuracy_level=0")
    types = {value.name: value.type.tensor_type.elem_type for value in loaded(model).graph.input}
    assert types["past_key_values.0.key"] == onnx.TensorProto.FLOAT16
    buffers = json.loads((model.folder / "plan.json").read_text())["buffers"]
    assert {buffer["dtype"] for buffer in buffers if buffer["kind"] == "cache"} == {"float16"}


def test_unknown_provider_lists_the_known() -> None:
    with pytest.raises(UnknownOnnxProvider, match="'tpu'") as error:
        targets.get("onnx").configured({"provider": "tpu"})
    assert "cpu, cuda, webgpu" in str(error.value)


def test_experts_are_outputs_only_where_they_are_wanted(export: Export) -> None:
    plain, counted = export("v3-grouped-yarn"), export("v3-grouped-yarn", target="onnx:experts=1")
    names = [{value.name for value in loaded(model).graph.output} for model in (plain, counted)]
    assert names[1] - names[0] == {"experts.1", "experts.2"}
    truth = visited(counted.checkpoint, counted.tokens)
    with runtime.load(counted.folder) as model, model.count_experts() as stats:
        model.logits(counted.tokens)
    experts = counted.checkpoint.config.n_routed_experts
    assert {layer: found.counts.tolist() for layer, found in stats.layers.items()} == counts(truth, experts)
    with runtime.load(plain.folder) as model, pytest.raises(ExpertsUnknown, match="experts=1"), model.count_experts():
        pass


def test_unknown_choice_of_experts() -> None:
    with pytest.raises(UnknownOnnxExperts, match="experts=yes"):
        targets.get("onnx").configured({"experts": "yes"})


@pytest.mark.parametrize("level", ["5", "-1", "high"])
def test_unknown_accuracy_level(level: str) -> None:
    with pytest.raises(UnknownAccuracyLevel, match="accuracy_level"):
        targets.get("onnx").configured({"accuracy_level": level})


@pytest.mark.parametrize(
    ("provider", "quant", "asked", "expected"),
    [
        ("cpu", "int4-g32", None, "f32"),
        ("cuda", "int4-g32", None, "f16"),
        ("cuda", "float32", None, "f32"),
        ("webgpu", "int8", "f32", "f32"),
    ],
)
def test_cache_has_the_type_of_the_activations(provider: str, quant: str, asked: str | None, expected: str) -> None:
    target = targets.get("onnx").configured({"provider": provider})
    assert choose_cache_dtype(CompileOptions(target="onnx", quant=quant, cache_dtype=asked), target) == expected


@pytest.mark.parametrize("asked", ["bf16", "int8", "fp8"])
def test_cache_type_that_a_provider_lacks_is_refused(asked: str) -> None:
    with pytest.raises(BadOptionError, match=f"cache_dtype is '{asked}'; expected f32 for the target onnx"):
        choose_cache_dtype(CompileOptions(target="onnx", cache_dtype=asked), targets.get("onnx"))
