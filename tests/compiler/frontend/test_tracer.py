from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.core import ops
from dsv3c.compiler.core.caches import caches_of
from dsv3c.compiler.core.ir import Graph, parse_graph, parse_type
from dsv3c.compiler.core.verifier import verify
from dsv3c.compiler.frontend import model, tracer
from tests.checkpoints import YARN, tiny_config, write_checkpoint

CONFIGS = {
    "deepseek_v3": tiny_config("deepseek_v3"),
    "deepseek_v3-yarn": tiny_config("deepseek_v3", rope_scaling=YARN),
    "deepseek_v3-no-query-latent": tiny_config("deepseek_v3", q_lora_rank=None),
    "deepseek_v2": tiny_config("deepseek_v2"),
    "kimi_k2": tiny_config("kimi_k2"),
    "glm4_moe_lite": tiny_config("glm4_moe_lite"),
    "youtu": tiny_config("youtu"),
    "longcat_flash": tiny_config("longcat_flash"),
}
PAGE_SIZE = 4
STEP = {
    "tokens": np.array([5, 7, 11, 13, 17], np.int32),
    "positions": np.array([0, 1, 2, 0, 1], np.int32),
    "sequence": np.array([0, 0, 0, 1, 1], np.int32),
    "page_table": np.array([[3, 0], [1, 2]], np.int32),
    "rows": np.array([2, 4], np.int32),
}


@pytest.fixture(params=CONFIGS)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    write_checkpoint(tmp_path, CONFIGS[request.param])
    return Checkpoint.open(tmp_path)


@pytest.fixture
def with_mtp(tmp_path: Path) -> Checkpoint:
    write_checkpoint(tmp_path, tiny_config("deepseek_v3", num_nextn_predict_layers=1))
    return Checkpoint.open(tmp_path)


def params(graph: Graph) -> set[str]:
    return {str(value.attrs["name"]) for value in graph.values() if value.op == "param"}


def inputs(graph: Graph) -> dict[str, str]:
    return {str(value.attrs["name"]): str(value.type) for value in graph.values() if value.op == "input"}


def test_the_trace_is_valid_and_names_its_inputs_and_results(checkpoint: Checkpoint) -> None:
    graph = tracer.trace(checkpoint.config, checkpoint.shapes, PAGE_SIZE, "bf16")
    verify(graph, "trace", "trace")
    assert parse_graph(str(graph)) == graph
    layers = range(checkpoint.config.num_hidden_layers)
    caches = {f"cache.{layer}": "bf16[N, 40]" for layer in layers}
    assert inputs(graph) == {
        "tokens": "i32[T]",
        "positions": "i32[T]",
        "sequence": "i32[T]",
        "page_table": "i32[S, P]",
        "rows": "i32[R]",
        **caches,
    }
    experts = [f"experts.{layer}" for layer in layers if checkpoint.config.is_moe(layer)]
    assert [name for name, _ in graph.results] == ["logits", "hidden", *caches, *experts]
    top_k = checkpoint.config.num_experts_per_tok
    assert {str(graph.result(name).type) for name in experts} <= {f"i32[T, {top_k}]"}
    assert graph.result("logits").type == parse_type("f32[R, 96]")
    assert graph.result("hidden").type == parse_type("f32[T, 64]")


def test_every_tensor_of_the_checkpoint_is_used(checkpoint: Checkpoint) -> None:
    assert params(tracer.trace(checkpoint.config, checkpoint.shapes, PAGE_SIZE)) == set(checkpoint.shapes)


def test_recording_and_computing_the_model_agree(checkpoint: Checkpoint) -> None:
    """The graph's evaluation is that of the same functions on arrays."""
    config = checkpoint.config
    graph = tracer.trace(config, checkpoint.shapes, PAGE_SIZE)
    caches = {cache.name: cache.zeros(16) for cache in caches_of([graph])}
    given: dict[str, Any] = STEP | caches
    recorded = ops.evaluate_graph(graph, given, checkpoint.read)
    step = model.StepInputs(**STEP, page_size=PAGE_SIZE)
    computed = model.forward(ops.Evaluator(), config, checkpoint.read, step, caches)
    np.testing.assert_allclose(recorded["logits"], computed.logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(recorded["hidden"], computed.hidden, rtol=1e-5, atol=1e-5)
    for layer, experts in computed.experts.items():
        np.testing.assert_array_equal(recorded[f"experts.{layer}"], experts)
    assert computed.caches.keys() == caches.keys()
    for name, cache in computed.caches.items():
        np.testing.assert_allclose(recorded[name], cache, rtol=1e-5, atol=1e-5)


def test_steps_of_one_token_give_what_one_step_of_all_gives(checkpoint: Checkpoint) -> None:
    graph = tracer.trace(checkpoint.config, checkpoint.shapes, PAGE_SIZE)
    caches: dict[str, Any] = {cache.name: cache.zeros(16) for cache in caches_of([graph])}
    together = ops.evaluate_graph(graph, STEP | caches, checkpoint.read)
    for token in range(5):
        single = {name: STEP[name][token : token + 1] for name in ("tokens", "positions", "sequence")}
        single |= {"page_table": STEP["page_table"], "rows": np.zeros(1, np.int32)}
        found = ops.evaluate_graph(graph, single | caches, checkpoint.read)
        caches = {name: found[name] for name in caches}
        np.testing.assert_allclose(found["hidden"][0], together["hidden"][token], rtol=1e-4, atol=1e-4)


def test_the_mtp_module_reads_hidden_states_and_writes_the_cache_behind_the_main_layers(with_mtp: Checkpoint) -> None:
    graph = tracer.trace_mtp(with_mtp.config, with_mtp.shapes, PAGE_SIZE, depth=0)
    verify(graph, "trace", "trace")
    assert inputs(graph)["hidden"] == "f32[T, 64]"
    assert {name for name in inputs(graph) if name.startswith("cache")} == {"cache.3"}
    assert [name for name, _ in graph.results] == ["logits", "hidden", "cache.3"]
    own = {name for name in with_mtp.shapes if name.startswith("model.layers.3.")}
    assert params(graph) == own | {"model.embed_tokens.weight", "lm_head.weight"}


def test_both_traces_together_use_every_tensor(with_mtp: Checkpoint) -> None:
    main = tracer.trace(with_mtp.config, with_mtp.shapes, PAGE_SIZE)
    mtp = tracer.trace_mtp(with_mtp.config, with_mtp.shapes, PAGE_SIZE, depth=0)
    assert params(main) | params(mtp) == set(with_mtp.shapes)
