from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsv3c.compiler.checkpoint.config import ModelConfig
from dsv3c.compiler.checkpoint.expected import optional_tensors, required_tensors
from tests.checkpoints import tensor_shapes, tiny_config

CASES: list[dict[str, Any]] = [
    tiny_config(),
    tiny_config(num_nextn_predict_layers=2, q_lora_rank=None, n_shared_experts=2),
    tiny_config(n_shared_experts=None, first_k_dense_replace=0, tie_word_embeddings=True),
    tiny_config(n_routed_experts=None, num_nextn_predict_layers=1),
    tiny_config("deepseek_v2"),
    tiny_config("glm4_moe_lite", mlp_layer_types=["sparse", "dense", "sparse"]),
    tiny_config("youtu"),
]


def per_expert(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    flat: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if "*" in name:
            flat |= {name.replace("*", str(expert)): shape[1:] for expert in range(shape[0])}
        else:
            flat[name] = shape
    return flat


@pytest.mark.parametrize("values", CASES, ids=lambda values: values["model_type"])
def test_the_tensors_are_those_of_a_checkpoint(values: dict[str, Any]) -> None:
    config = ModelConfig.from_dict(values, Path("config.json"))
    assert per_expert(required_tensors(config)) == tensor_shapes(values)


def test_an_mtp_layer_may_have_its_own_tables() -> None:
    config = ModelConfig.from_dict(tiny_config(num_nextn_predict_layers=1), Path("config.json"))
    assert optional_tensors(config) == {
        "model.layers.3.embed_tokens.weight": (96, 64),
        "model.layers.3.shared_head.head.weight": (96, 64),
    }
    assert optional_tensors(config.without_mtp()) == {}


def test_the_order_is_that_of_the_computation() -> None:
    config = ModelConfig.from_dict(tiny_config(), Path("config.json"))
    names = list(required_tensors(config))
    assert names[0] == "model.embed_tokens.weight"
    assert names[-1] == "lm_head.weight"
    assert names.index("model.layers.0.self_attn.o_proj.weight") < names.index("model.layers.1.mlp.gate.weight")
