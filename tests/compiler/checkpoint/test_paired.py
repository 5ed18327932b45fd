"""LongCat-Flash: two blocks a layer, by the names of single blocks; zero experts; scaled latents."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.checkpoint.config import ModelConfig
from dsv3c.compiler.checkpoint.errors import (
    ConfigConflictError,
    ConfigValueError,
    LeftOutError,
    MissingConfigKeyError,
    MissingTensorError,
    TensorShapeError,
    UnexpectedTensorError,
    UnsupportedConfigError,
)
from dsv3c.compiler.checkpoint.paired import block_name
from dsv3c.compiler.errors import CheckpointError
from tests.checkpoints import (
    fuse_experts,
    quantize_fp8,
    random_tensors,
    tiny_config,
    write_checkpoint,
    write_safetensors,
)

PATH = Path("model/config.json")
EXPERTS = "model.layers.1.mlp.experts."
BLOCKS = 4


def parse(**overrides: Any) -> ModelConfig:
    return ModelConfig.from_dict(tiny_config("longcat_flash", **overrides), PATH)


def write(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("model.layers.3.self_attn.0.q_a_proj.weight", "model.layers.6.self_attn.q_a_proj.weight"),
        ("model.layers.3.self_attn.1.o_proj.weight_scale_inv", "model.layers.7.self_attn.o_proj.weight_scale_inv"),
        ("model.layers.0.mlps.1.gate_proj.weight", "model.layers.1.mlp.gate_proj.weight"),
        ("model.layers.0.input_layernorm.1.weight", "model.layers.1.input_layernorm.weight"),
        ("model.layers.10.post_attention_layernorm.0.weight", "model.layers.20.post_attention_layernorm.weight"),
        ("model.layers.2.mlp.router.classifier.weight", "model.layers.4.mlp.gate.weight"),
        ("model.layers.2.mlp.router.e_score_correction_bias", "model.layers.4.mlp.gate.e_score_correction_bias"),
        ("model.layers.2.mlp.experts.7.up_proj.weight", "model.layers.4.mlp.experts.7.up_proj.weight"),
        ("model.layers.2.mlp.router", "model.layers.4.mlp.gate"),
        ("model.layers.2.self_attn.1", "model.layers.5.self_attn"),
        ("model.layers.2.self_attn.12.o_proj.weight", "model.layers.4.self_attn.12.o_proj.weight"),
        ("model.norm.weight", "model.norm.weight"),
        ("mlp.router", "mlp.router"),
    ],
)
def test_each_block_is_a_layer(name: str, block: str) -> None:
    assert block_name(name, BLOCKS) == block


def test_the_config_counts_blocks_and_reads_its_own_names() -> None:
    config = parse()
    assert (config.num_hidden_layers, config.mlp_layer_types) == (4, ("shortcut", "dense") * 2)
    assert (config.intermediate_size, config.moe_intermediate_size, config.num_experts_per_tok) == (96, 32, 3)
    assert (config.n_routed_experts, config.zero_expert_num, config.n_shared_experts) == (8, 4, 0)
    assert (config.scoring_func, config.score_bias, config.norm_topk_prob) == ("softmax", True, False)
    assert (config.q_latent_scale, config.kv_latent_scale) == (math.sqrt(64 / 48), math.sqrt(64 / 32))
    assert parse(num_hidden_layers=7) == config
    assert ModelConfig.from_stored(json.loads(json.dumps(config.to_dict()))) == config


def test_what_the_code_takes_for_absent_keys() -> None:
    absent = ("zero_expert_num", "zero_expert_type", "mla_scale_q_lora", "mla_scale_kv_lora", "rope_theta")
    config = parse(**dict.fromkeys(absent, ...))
    assert (config.zero_expert_num, config.rope_theta, config.kv_latent_scale) == (256, 1e7, math.sqrt(2))
    plain = parse(zero_expert_num=None, mla_scale_q_lora=False, mla_scale_kv_lora=False)
    assert (plain.zero_expert_num, plain.q_latent_scale, plain.kv_latent_scale) == (0, 1, 1)


BAD: dict[str, tuple[dict[str, Any], type[CheckpointError], str]] = {
    "no layers": ({"num_layers": ...}, MissingConfigKeyError, "num_layers"),
    "layers a string": ({"num_layers": "2"}, ConfigValueError, "num_layers"),
    "too many layers": ({"num_layers": 4096}, ConfigValueError, "num_layers"),
    "zero experts below 0": ({"zero_expert_num": -1}, ConfigValueError, "zero_expert_num"),
    "zero experts of another kind": ({"zero_expert_type": "copy"}, UnsupportedConfigError, "known is identity"),
    "groups": ({"n_group": 4, "topk_group": 2}, ConfigConflictError, "zero_expert_num 4 has no place in n_group 4"),
    "a scale that is a number": ({"mla_scale_q_lora": 2}, ConfigValueError, "mla_scale_q_lora"),
    "a router with a bias": ({"router_bias": True}, UnsupportedConfigError, "router_bias"),
    "other attention": ({"attention_method": "GQA"}, UnsupportedConfigError, "attention_method"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_config_is_refused(case: str) -> None:
    overrides, error, reason = BAD[case]
    with pytest.raises(error, match=reason):
        parse(**overrides)


def test_a_published_checkpoint_is_read_by_its_blocks(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path, tiny_config("longcat_flash"))
    opened = Checkpoint.open(tmp_path)
    assert opened.notes == ()
    names = {
        "model.layers.3.self_attn.kv_b_proj.weight": "model.layers.1.self_attn.1.kv_b_proj.weight",
        "model.layers.2.mlp.up_proj.weight": "model.layers.1.mlps.0.up_proj.weight",
        "model.layers.2.mlp.gate.weight": "model.layers.1.mlp.router.classifier.weight",
    }
    for ours, published in names.items():
        np.testing.assert_array_equal(opened.read(ours), written[published])
    for expert in range(8):
        found = opened.part("model.layers.2.mlp.experts.*.down_proj.weight", expert)
        np.testing.assert_array_equal(found, written[f"{EXPERTS}{expert}.down_proj.weight"])


@pytest.mark.parametrize("fused", [False, True])
def test_matrices_of_zero_experts_are_passed_over(fused: bool, tmp_path: Path) -> None:
    """transformers 5 has them, and saves them: gate and up alone, without a use."""
    config = tiny_config("longcat_flash")
    tensors = random_tensors(config)
    expected = Checkpoint.open(write(tmp_path, config, tensors))
    values = {name: expected.read(name) for name in expected.shapes}
    for prefix, part in itertools.product(("model.layers.0.mlp.experts.", EXPERTS), ("gate", "up", "down")):
        shape = (64, 32) if part == "down" else (32, 64)
        more = {f"{prefix}{expert}.{part}_proj.weight": np.ones(shape, np.float32) for expert in range(8, 12)}
        tensors |= more if fused or part != "down" else {}
    if fused:
        tensors = fuse_experts(tensors)
        tensors = {name: value[:8] if name.endswith("experts.down_proj") else value for name, value in tensors.items()}
        assert tensors[f"{EXPERTS}gate_up_proj"].shape == (12, 64, 64)
    opened = Checkpoint.open(write(tmp_path, config, tensors))
    for name, value in values.items():
        np.testing.assert_array_equal(opened.read(name), value)


def test_the_layer_of_multi_token_prediction_is_a_dense_one_behind_the_others(tmp_path: Path) -> None:
    """config.json as published says nothing of it."""
    config = tiny_config("longcat_flash", num_nextn_predict_layers=1)
    tensors = random_tensors(config)
    del config["num_nextn_predict_layers"]
    opened = Checkpoint.open(write(tmp_path, config, tensors))
    assert opened.notes == ("config.json has no num_nextn_predict_layers; the tensors say 1",)
    assert opened.config.mlp_layer_types == ("shortcut", "dense", "shortcut", "dense", "dense")
    names = {
        "enorm.weight": "layers.0.enorm.m.weight",
        "eh_proj.weight": "layers.0.eh_proj.weight",
        "self_attn.kv_a_layernorm.weight": "layers.0.self_attn.kv_a_layernorm.weight",
        "mlp.down_proj.weight": "layers.0.transformer_layer.mlp.down_proj.weight",
        "embed_tokens.weight": "embed_tokens.weight",
        "shared_head.norm.weight": "norm.weight",
    }
    for ours, published in names.items():
        np.testing.assert_array_equal(opened.read(f"model.layers.4.{ours}"), tensors[f"model.mtp.{published}"])


def test_a_part_of_that_layer_is_missing_or_unknown(tmp_path: Path) -> None:
    config = tiny_config("longcat_flash", num_nextn_predict_layers=1)
    tensors = random_tensors(config)
    more = {"model.mtp.layers.0.self_attn.q_norm.weight": np.ones(16, np.float32)}
    with pytest.raises(UnexpectedTensorError, match=r"model\.layers\.4\.self_attn\.q_norm"):
        Checkpoint.open(write(tmp_path, config, tensors | more))
    del tensors["model.mtp.norm.weight"]
    with pytest.raises(MissingTensorError, match=r"model\.layers\.4\.shared_head\.norm"):
        Checkpoint.open(write(tmp_path, config, tensors))


@pytest.mark.parametrize("name", ["model.mtp", "model.mtp.layers.0"])
def test_the_module_of_that_layer_goes_by_its_name(name: str) -> None:
    assert block_name(name, BLOCKS) == "model.layers.4"


def test_codes_and_the_modules_that_have_none_go_by_the_names_of_blocks(tmp_path: Path) -> None:
    quantization = {"quant_method": "fp8", "weight_block_size": [32, 32], "modules_to_not_convert": []}
    config = tiny_config("longcat_flash", num_layers=1, quantization_config=quantization)
    tensors, name = random_tensors(config), "model.layers.0.self_attn.1.o_proj"
    tensors[f"{name}.weight"], tensors[f"{name}.weight_scale_inv"] = quantize_fp8(tensors[f"{name}.weight"], (32, 32))
    assert (
        Checkpoint.open(write(tmp_path, config, tensors)).coding("model.layers.1.self_attn.o_proj.weight") is not None
    )
    quantization["modules_to_not_convert"] = [name]
    with pytest.raises(LeftOutError, match="o_proj"):
        Checkpoint.open(write(tmp_path, config, tensors))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    config = tiny_config("longcat_flash")
    tensors = random_tensors(config)
    cases: list[tuple[dict[str, Any], type[CheckpointError], str]] = [
        ({"model.layers.0.mlp.router.classifier.weight": tensors["model.layers.0.mlp.router.classifier.weight"][:8]},
         TensorShapeError, r"\[8, 64\], expected \[12, 64\]"),
        ({"model.layers.0.self_attn.2.norm.weight": np.ones(64, np.float32)}, UnexpectedTensorError, r"self_attn\.2"),
        ({f"{EXPERTS}12.up_proj.weight": np.ones((32, 64), np.float32)}, UnexpectedTensorError, r"experts\.12"),
    ]  # fmt: skip
    for changed, error, reason in cases:
        with pytest.raises(error, match=reason):
            Checkpoint.open(write(tmp_path, config, tensors | changed))
    del tensors["model.layers.1.input_layernorm.1.weight"]
    with pytest.raises(MissingTensorError, match=r"model\.layers\.3\.input_layernorm\.weight"):
        Checkpoint.open(write(tmp_path, config, tensors))
