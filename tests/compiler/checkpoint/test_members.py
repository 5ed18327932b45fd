"""What is particular to single members of the family."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.checkpoint.config import ModelConfig
from dsv3c.compiler.checkpoint.errors import (
    ConfigValueError,
    MissingTensorError,
    UnexpectedTensorError,
    UnsupportedConfigError,
)
from dsv3c.compiler.checkpoint.indexer import INDEXER
from dsv3c.compiler.checkpoint.rope import RopeScaling
from dsv3c.compiler.errors import CheckpointError
from dsv3c.compiler.frontend.caches import cache_rows, main_cache_rows
from tests.checkpoints import random_tensors, text_config, tiny_config, write_checkpoint, write_safetensors

PATH = Path("model/config.json")
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [1.0, 2.0, 4.0, 8.0]}


def parse(model_type: str, /, **overrides: Any) -> ModelConfig:
    return ModelConfig.from_dict(tiny_config(model_type, **overrides), PATH)


def write(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


# --- multimodal models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["kimi_k25", "kimi_vl", "mistral3"])
def test_a_multimodal_checkpoint_is_its_text_model(model_type: str, tmp_path: Path) -> None:
    config = tiny_config(model_type)
    written = write_checkpoint(tmp_path, config)
    opened = Checkpoint.open(tmp_path)
    assert opened.config == ModelConfig.from_dict(text_config(config), PATH)
    assert opened.notes == (
        f"of {model_type} the text model is compiled, which reads no images: 'vision_tower' (1 tensors) left out",
    )
    for name in ("lm_head.weight", "model.layers.0.self_attn.o_proj.weight"):
        np.testing.assert_array_equal(opened.read(name), written[f"language_model.{name}"])


def test_the_names_that_transformers_has_in_memory(tmp_path: Path) -> None:
    config, tensors = tiny_config("kimi_k25"), random_tensors(tiny_config("kimi_k2"))
    named = {name.replace("model.", "model.language_model.", 1): value for name, value in tensors.items()}
    opened = Checkpoint.open(write(tmp_path, config, named | {"model.vision_tower.w": np.ones(3, np.float32)}))
    assert opened.shapes.keys() == Checkpoint.open(write(tmp_path, tiny_config("kimi_k2"), tensors)).shapes.keys()
    assert "'vision_tower' (1 tensors)" in opened.notes[0]


def test_codes_below_a_prefix_are_read(tmp_path: Path) -> None:
    """The scales beside them, and the modules that are said to have none, go by the same names."""
    config = tiny_config("kimi_k25", num_hidden_layers=1, n_routed_experts=None)
    quantization = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    config["quantization_config"] = {**quantization, "modules_to_not_convert": ["language_model.lm_head"]}
    write_checkpoint(tmp_path, config, dtype="float8_e4m3")
    name = "model.layers.0.self_attn.o_proj.weight"
    opened = Checkpoint.open(tmp_path)
    assert opened.config.weight_block_size == (32, 32)
    assert opened.coding(name) is not None
    assert np.abs(opened.read(name) - random_tensors(config)[f"language_model.{name}"]).max() < 0.1


def test_what_the_outer_config_says_of_the_text(tmp_path: Path) -> None:
    config = tiny_config("kimi_k25", bos_token_id=..., eos_token_id=None, tie_word_embeddings=True)
    outer = {"bos_token_id": 5, "eos_token_id": 6, "tie_word_embeddings": False}
    tensors = random_tensors(config) | {"lm_head.weight": np.ones((96, 64), np.float32)}
    opened = Checkpoint.open(write(tmp_path, config | outer, tensors))
    assert (opened.config.bos_token_id, opened.config.eos_token_ids) == (5, (6,))
    assert not opened.config.tie_word_embeddings


def test_a_multimodal_checkpoint_without_its_text_model(tmp_path: Path) -> None:
    config = tiny_config("kimi_k25")
    write_checkpoint(tmp_path, config)
    write_safetensors(tmp_path / "model.safetensors", {"vision_tower.w": np.ones(3, np.float32)})
    with pytest.raises(MissingTensorError):
        Checkpoint.open(tmp_path)
    for text in (None, {}, [], "deepseek_v3"):
        (tmp_path / "config.json").write_text(json.dumps({**config, "text_config": text}))
        with pytest.raises(ConfigValueError, match="text_config"):
            Checkpoint.open(tmp_path)


# --- sparse attention -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["deepseek_v32", "glm_moe_dsa", "deepseek_v3"])
def test_a_context_within_index_topk_needs_no_indexer(model_type: str, tmp_path: Path) -> None:
    config = tiny_config("deepseek_v32", index_topk=512) | {"model_type": model_type}
    write_checkpoint(tmp_path, config)
    opened = Checkpoint.open(tmp_path)
    assert (opened.config.max_position_embeddings, opened.config.indexer_types) == (512, ())
    assert not [name for name in opened.shapes if "indexer" in name]
    assert [row.name for row in main_cache_rows(opened.config)] == ["cache.0", "cache.1", "cache.2"]
    assert opened.notes == (
        "the 15 tensors of indexers are left out: no context is longer than the 512 tokens of index_topk, up to which"
        " attention is dense",
    )


def test_an_indexer_has_a_cache_of_its_own(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config("glm_moe_dsa"))
    config = Checkpoint.open(tmp_path).config
    assert config.indexer_types == ("full", "full", "shared")
    assert [(row.name, row.width, str(row.type("int8"))) for row in main_cache_rows(config)] == [
        ("cache.0", 40, "int8-at32[N, 40]"),
        ("cache.0.index", 16, "bf16[N, 16]"),
        ("cache.1", 40, "int8-at32[N, 40]"),
        ("cache.1.index", 16, "bf16[N, 16]"),
        ("cache.2", 40, "int8-at32[N, 40]"),
    ]


def test_indexers_of_layers_that_share_a_choice_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, tiny_config("glm_moe_dsa"), random_tensors(tiny_config("glm_moe_dsa", index_topk_freq=1)))
    opened = Checkpoint.open(tmp_path)
    assert opened.notes == ("the 5 tensors of indexers are left out: their layers take the choice of another",)
    assert sum("indexer" in name for name in opened.shapes) == 10


def test_multi_token_prediction_without_an_indexer_attends_to_all(tmp_path: Path) -> None:
    config = tiny_config("deepseek_v32", num_nextn_predict_layers=1)
    tensors = random_tensors(config)
    write(
        tmp_path, config, {name: w for name, w in tensors.items() if not name.startswith(f"model.layers.3.{INDEXER}")}
    )
    opened = Checkpoint.open(tmp_path).config
    assert opened.indexer_types == ("full", "full", "full", "none")
    assert [row.name for row in cache_rows(opened, 3)] == ["cache.3"]
    assert opened.without_mtp().indexer_types == ("full", "full", "full")


@pytest.mark.parametrize(
    ("keys", "types"),
    [
        ({}, "FFFFFF"),
        ({"index_topk_freq": 2}, "FFSFSF"),
        ({"index_topk_freq": 3, "index_skip_topk_offset": 1}, "FSSFSS"),
        ({"index_topk_freq": 2, "index_topk_pattern": "FSSFSF"}, "FSSFSF"),
        ({"indexer_types": ["full", "shared", "full", "shared", "full", "full"]}, "FSFSFF"),
    ],
)
def test_which_layers_choose(keys: dict[str, Any], types: str) -> None:
    config = parse("glm_moe_dsa", **{"index_topk_freq": ..., "num_hidden_layers": 6, "mlp_layer_types": ..., **keys})
    assert "".join(kind[0].upper() for kind in config.indexer_types) == types


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"indexer_types": ["shared", "full", "full"]}, "indexer_types.*full for the first layer"),
        ({"indexer_types": ["full", "full"]}, "indexer_types.*3 times full or shared"),
        ({"index_topk_freq": 2, "index_skip_topk_offset": 0}, "index_skip_topk_offset.*an integer from 1"),
        ({"indexer_types": ["full", "full", ["full"]]}, "indexer_types.*3 times full or shared"),
        ({"index_topk_pattern": "FXS"}, "index_topk_pattern.*3 times full or shared"),
        ({"index_head_dim": 4}, "index_head_dim.*at least qk_rope_head_dim, 8"),
        ({"index_n_heads": 0}, "index_n_heads"),
        ({"index_topk_freq": "2"}, "index_topk_freq"),
        ({"q_lora_rank": None}, "q_lora_rank.*an indexer reads the latent of queries"),
    ],
)
def test_wrong_keys_of_an_indexer_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse("glm_moe_dsa", **keys)


def test_sizes_of_an_indexer_have_the_defaults_of_the_published_code() -> None:
    absent = dict.fromkeys(("index_topk", "index_n_heads", "index_head_dim"), ...)
    for model_type, heads, interleave in (("deepseek_v32", 64, False), ("glm_moe_dsa", 32, True)):
        config = parse(model_type, **absent, max_position_embeddings=163840)
        assert (config.index_topk, config.max_position_embeddings) == (2048, 163840)
        assert (config.index_n_heads, config.index_head_dim) == (heads, 128)
        assert config.index_interleave == interleave


def test_indexers_without_index_topk_are_not_passed_over(tmp_path: Path) -> None:
    config = tiny_config("deepseek_v32")
    write(tmp_path, tiny_config("deepseek_v3"), random_tensors(config))
    with pytest.raises(UnexpectedTensorError, match="indexer"):
        Checkpoint.open(tmp_path)


# --- A.X-K1 -----------------------------------------------------------------------------------------------------------


def test_the_norm_behind_experts_and_the_ones_that_dense_layers_do_not_use(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config("axk1"))
    opened = Checkpoint.open(tmp_path)
    norms = [name for name in opened.shapes if "post_mlp_layernorm" in name]
    assert norms == [f"model.layers.{layer}.post_mlp_layernorm.weight" for layer in (1, 2)]
    assert opened.notes == ()


def test_experts_chosen_without_a_bias(tmp_path: Path) -> None:
    tensors = random_tensors(tiny_config("axk1"))
    without = {name: value for name, value in tensors.items() if not name.endswith("bias")}
    assert not Checkpoint.open(write(tmp_path, tiny_config("axk1"), without)).config.score_bias
    with pytest.raises(MissingTensorError):  # where it is not optional
        Checkpoint.open(write(tmp_path, tiny_config("deepseek_v3"), without))


# --- Mistral Small 4 --------------------------------------------------------------------------------------------------


def test_queries_are_scaled_by_their_position() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "llama_4_scaling_beta": 0.5}
    config = parse("mistral4", rope_parameters=rope)
    assert config.query_scale_block == 128
    assert config.query_scales == tuple(1 + 0.5 * math.log1p(position // 128) for position in range(0, 512, 128))
    assert ModelConfig.from_stored(json.loads(json.dumps(config.to_dict()))) == config
    del rope["llama_4_scaling_beta"]
    assert parse("mistral4", rope_parameters=rope).query_scales == ()


def test_experts_are_ranked_without_a_bias_and_their_groups_by_the_best_two() -> None:
    config = parse("mistral4")
    assert (config.scoring_func, config.topk_method, config.score_bias) == ("softmax", "noaux_tc", False)


def test_the_rotation_of_a_mistral_that_says_nothing_of_it() -> None:
    config = parse("mistral4", max_position_embeddings=1 << 20, rope_theta=...)
    assert config.rope_scaling == RopeScaling(128.0, 8192, mscale=1.0, mscale_all_dim=1.0)
    assert len(config.query_scales) == 128
    # Its published code takes all of them together: a rope_theta beside them is then not read.
    assert parse("mistral4", rope_theta=1e6).rope_theta == config.rope_theta == 10000.0


def test_partial_rotary_factor_is_of_the_whole_head() -> None:
    assert parse("mistral4", partial_rotary_factor=8 / 24) == parse("mistral4")
    for factor in (0.5, 1.0):
        with pytest.raises(UnsupportedConfigError, match="partial_rotary_factor"):
            parse("mistral4", partial_rotary_factor=factor)


@pytest.mark.parametrize("rope", [{"llama_4_scaling_beta": -1}, {"llama_4_scaling_beta": "0.1"},
                                  {"llama_4_scaling_beta": 0.1},
                                  {"llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 0}])  # fmt: skip
def test_bad_scales_of_queries_are_refused(rope: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"llama_4_scaling_beta|original_max_position_embeddings"):
        parse("mistral4", rope_parameters=rope)


# --- MiniCPM3 ---------------------------------------------------------------------------------------------------------


def test_scales_and_their_defaults() -> None:
    config = parse("minicpm3", scale_emb=..., scale_depth=..., dim_model_base=..., tie_word_embeddings=...)
    assert config.embedding_scale == 12
    assert config.residual_scale == 1.4 / math.sqrt(3)
    assert config.logits_scale == 256 / 64
    assert config.tie_word_embeddings and not config.rope_interleave
    none = parse("minicpm3", scale_emb=1, scale_depth=None, dim_model_base=None)
    assert (none.embedding_scale, none.residual_scale, none.logits_scale) == (1, 1, 1)
    assert none.stream_norm_eps == none.rms_norm_eps


def test_longrope_divides_each_frequency() -> None:
    plain, long = parse("minicpm3"), parse("minicpm3", rope_scaling={**LONGROPE, "factor": 4.0})
    np.testing.assert_allclose(long.rope_inv_freq(), plain.rope_inv_freq() / np.array(LONGROPE["short_factor"]), 1e-6)
    assert long.rope_attention_factor == math.sqrt(1 + math.log(4) / math.log(512))
    assert parse("minicpm3", rope_scaling={**LONGROPE, "attention_factor": 1.5}).rope_attention_factor == 1.5


def test_longrope_holds_up_to_the_original_length() -> None:
    """Beyond it transformers rotates the whole text by the long factors."""
    short = parse("minicpm3", rope_scaling={**LONGROPE, "original_max_position_embeddings": 128})
    assert short.max_position_embeddings == 128
    alike = {**LONGROPE, "long_factor": LONGROPE["short_factor"], "original_max_position_embeddings": 128}
    assert parse("minicpm3", rope_scaling=alike).max_position_embeddings == 512


@pytest.mark.parametrize("factors", [None, [], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 0], [1.0, 2.0, 3.0, "4"], [True] * 4])
def test_bad_factors_are_refused(factors: Any) -> None:
    for key in ("short_factor", "long_factor"):
        with pytest.raises(CheckpointError, match=key):
            parse("minicpm3", rope_scaling={**LONGROPE, key: factors})


def test_the_manifest_form_gives_longrope_back() -> None:
    config = parse("minicpm3", rope_scaling=LONGROPE)
    assert ModelConfig.from_stored(json.loads(json.dumps(config.to_dict()))) == config


def test_manifests_without_younger_fields_are_read() -> None:
    config = parse("deepseek_v3")
    young = {"score_bias", "post_mlp_norm", "index_topk", "embedding_scale", "residual_scale", "logits_scale",
             "query_scales", "query_scale_block"}  # fmt: skip
    old = {key: value for key, value in config.to_dict().items() if key not in young}
    assert ModelConfig.from_stored(json.loads(json.dumps(old))) == config
