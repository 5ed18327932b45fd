from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from dsv3c.compiler.checkpoint.config import ModelConfig
from dsv3c.compiler.checkpoint.infer import infer_missing
from tests.checkpoints import fuse_experts, random_tensors, tensor_shapes, tiny_config

SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "v_head_dim",
    "qk_nope_head_dim", "n_routed_experts", "moe_intermediate_size", "n_shared_experts", "first_k_dense_replace",
    "num_nextn_predict_layers",
)  # fmt: skip


def config_of(model_type: str) -> dict[str, Any]:
    mtp = {} if model_type in ("deepseek_v2", "youtu") else {"num_nextn_predict_layers": 1}
    return tiny_config(model_type, **mtp)


def check(config: dict[str, Any], missing: tuple[str, ...], shapes: dict[str, tuple[int, ...]]) -> None:
    found, notes = infer_missing({key: value for key, value in config.items() if key not in missing}, shapes)
    path = Path("config.json")
    assert ModelConfig.from_dict(found, path) == ModelConfig.from_dict(config, path)
    assert len(notes) <= len(missing)
    for key in set(missing) & config.keys():
        assert any(key in note and str(config[key]) in note for note in notes), key


@pytest.mark.parametrize("model_type", ["deepseek_v3", "deepseek_v2", "glm4_moe_lite", "youtu"])
def test_each_missing_size_is_read_off_the_tensors(model_type: str) -> None:
    config = config_of(model_type)
    shapes = tensor_shapes(config)
    for missing in [*((key,) for key in SIZES), *itertools.combinations(SIZES, 2), SIZES]:
        check(config, missing, shapes)


def test_fused_experts_tell_the_same() -> None:
    config = config_of("deepseek_v3")
    shapes = {name: value.shape for name, value in fuse_experts(random_tensors(config)).items()}
    check(config, SIZES, shapes)


def test_a_single_query_projection_and_absent_experts() -> None:
    config = tiny_config(q_lora_rank=None, n_routed_experts=None)
    found, notes = infer_missing(tiny_config(q_lora_rank=..., n_routed_experts=...), tensor_shapes(config))
    assert found["q_lora_rank"] is None and found["n_routed_experts"] is None
    assert len(notes) == 2


def test_what_is_given_stays() -> None:
    config = tiny_config(q_lora_rank=None, vocab_size=7, hidden_size="wide")
    shapes = {**tensor_shapes(tiny_config()), "model.layers.0.odd": (1, 2, 3)}
    assert infer_missing(config, shapes) == (config, ())


def test_nothing_is_told_by_nothing() -> None:
    assert infer_missing({}, {}) == ({}, ())
    odd = {"model.embed_tokens.weight": (3,), "model.layers.x.mlp.gate_proj.weight": (), "": (1,)}
    assert "vocab_size" not in infer_missing({"num_attention_heads": 0}, odd)[0]
