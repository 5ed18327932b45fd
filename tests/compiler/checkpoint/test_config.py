from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.compiler.checkpoint.config import MODEL_TYPES, ModelConfig
from dsv3c.compiler.checkpoint.errors import (
    ConfigConflictError,
    ConfigValueError,
    MissingConfigKeyError,
    UnknownModelTypeError,
    UnsupportedConfigError,
)
from dsv3c.compiler.checkpoint.members import MEMBERS, SAME_AS
from dsv3c.compiler.checkpoint.rope import RopeScaling
from dsv3c.compiler.errors import CheckpointError
from tests.checkpoints import YARN, tiny_config

PATH = Path("model/config.json")
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
DENSE = {"n_routed_experts": None}


def parse(model_type: str = "deepseek_v3", /, **overrides: Any) -> ModelConfig:
    return ModelConfig.from_dict(tiny_config(model_type, **overrides), PATH)


def test_the_bundled_model(bundled_model: Path) -> None:
    config = ModelConfig.from_dict(json.loads((bundled_model / "config.json").read_text()), PATH)
    assert config.mlp_layer_types == ("dense", *["sparse"] * 4)
    assert (config.num_hidden_layers, config.num_nextn_predict_layers) == (4, 1)
    assert [config.is_moe(layer) for layer in range(5)] == [False, True, True, True, True]
    assert config.rope_scaling == RopeScaling(4.0, 512, 32.0, 1.0, 1.0, 1.0)
    assert config.softmax_scale == pytest.approx(48**-0.5 * (0.1 * math.log(4) + 1) ** 2)
    assert config.rope_attention_factor == 1.0
    assert config.weight_block_size == (128, 128)
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (0, (1,), 2)


def test_the_derived_sizes() -> None:
    config = parse()
    assert config.qk_head_dim == 24
    assert config.latent_dim == 40
    assert config.latent_norm_eps == 1e-6
    assert config.softmax_scale == 24**-0.5
    assert config.rope_inv_freq().shape == (4,)
    assert parse(rms_norm_eps=1e-5).latent_norm_eps == 1e-6


@pytest.mark.parametrize("model_type", [*MODEL_TYPES, *SAME_AS])
def test_every_model_type(model_type: str) -> None:
    config = parse(model_type)
    assert config.model_type == SAME_AS.get(model_type, model_type)
    kind = "dense" if MEMBERS[config.model_type].dense else "sparse"
    paired = MEMBERS[config.model_type].paired
    assert config.mlp_layer_types == (("shortcut", "dense") * 2 if paired else ("dense", kind, kind))
    assert config.scoring_func == MEMBERS[config.model_type].scorings[0]
    assert config.tie_word_embeddings == MEMBERS[config.model_type].dense


def test_the_manifest_form_is_json() -> None:
    values = json.loads(json.dumps(parse(rope_scaling=YARN, quantization_config=FP8).to_dict()))
    assert values.keys() == {field.name for field in dataclasses.fields(ModelConfig)}
    assert values["weight_block_size"] == [128, 128]
    assert values["rope_scaling"]["factor"] == 4.0


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_manifest_form_gives_the_config_back(model_type: str) -> None:
    for config in (parse(model_type), parse(model_type, rope_scaling=YARN, quantization_config=FP8)):
        stored = {"name": "some-model", **json.loads(json.dumps(config.to_dict()))}
        assert ModelConfig.from_stored(stored) == config


def test_defaults_of_what_old_configs_leave_out() -> None:
    config = parse(
        num_key_value_heads=..., tie_word_embeddings=..., attention_bias=..., hidden_act=..., bos_token_id=...,
        eos_token_id=..., topk_method=..., scoring_func=..., n_shared_experts=None, rope_theta=...,
    )  # fmt: skip
    assert (config.topk_method, config.scoring_func, config.n_shared_experts) == ("noaux_tc", "sigmoid", 0)
    assert (config.bos_token_id, config.eos_token_ids, config.rope_theta) == (None, (), 10000.0)
    assert config.rope_interleave and not config.tie_word_embeddings
    assert parse("youtu", tie_word_embeddings=...).tie_word_embeddings
    assert parse("glm4_moe_lite", mlp_layer_types=...).mlp_layer_types == ("dense", "sparse", "sparse")
    assert parse("glm4_moe_lite", mlp_layer_types=..., first_k_dense_replace=2).first_k_dense_replace == 2


def test_layer_types() -> None:
    assert parse(first_k_dense_replace=0).mlp_layer_types == ("sparse",) * 3
    assert parse(first_k_dense_replace=3, num_nextn_predict_layers=1).mlp_layer_types == ("dense",) * 3 + ("sparse",)
    assert parse(first_k_dense_replace=0, moe_layer_freq=2).mlp_layer_types == ("sparse", "dense", "sparse")
    assert parse(mlp_layer_types=["sparse", "dense", "sparse"]).mlp_layer_types == ("sparse", "dense", "sparse")
    dense = parse(num_nextn_predict_layers=1, **DENSE)
    assert dense.mlp_layer_types == ("dense",) * 4
    assert (dense.n_routed_experts, dense.num_experts_per_tok) == (0, 0)
    assert parse(num_nextn_predict_layers=2).without_mtp() == parse()


def test_other_names_of_transformers() -> None:
    assert parse(num_nextn_predict_layers=..., num_mtp_layers=1).num_nextn_predict_layers == 1
    assert parse(n_routed_experts=..., num_local_experts=8) == parse()
    assert parse("deepseek_v2", n_routed_experts=..., num_experts=8) == parse("deepseek_v2")


def test_routing_of_deepseek_v2() -> None:
    greedy = parse("deepseek_v2", n_group=None, topk_group=None)
    assert (greedy.n_group, greedy.topk_group, greedy.norm_topk_prob) == (1, 1, False)
    assert parse("deepseek_v2", n_group=8, topk_group=3) == greedy
    limited = parse("deepseek_v2", topk_method="group_limited_greedy")
    assert (limited.n_group, limited.topk_group) == (4, 2)


def test_q_lora_rank_null_means_one_projection() -> None:
    assert parse(q_lora_rank=None).q_lora_rank is None


BAD: dict[str, tuple[dict[str, Any], type[CheckpointError], str]] = {
    **{
        f"no {key}": ({key: ...}, MissingConfigKeyError, key)
        for key in (
            "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers",
            "num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
            "n_routed_experts", "num_experts_per_tok", "n_group", "topk_group", "norm_topk_prob",
            "routed_scaling_factor", "first_k_dense_replace", "rms_norm_eps", "max_position_embeddings",
        )
    },
    **{
        f"{key} {value!r}": ({key: value}, ConfigValueError, key)
        for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "kv_lora_rank",
                    "q_lora_rank", "qk_rope_head_dim", "v_head_dim", "moe_intermediate_size")
        for value in (0, -1, 2**31, 2**70, 16.0, "16", True, [16])
    },
    "n_routed_experts negative": ({"n_routed_experts": -8}, ConfigValueError, "n_routed_experts"),
    "n_routed_experts huge": ({"n_routed_experts": 2**40}, ConfigValueError, "n_routed_experts"),
    "experts not a multiple of groups": ({"n_group": 3}, ConfigConflictError, "not a multiple"),
    "topk_group above n_group": ({"topk_group": 5}, ConfigConflictError, "topk_group 5 is above n_group 4"),
    "too many experts a token": ({"num_experts_per_tok": 5}, ConfigConflictError, "above the 4 experts of 2 groups"),
    "groups of one": ({"n_group": 8}, ConfigConflictError, "two best"),
    "n_group 0": ({"n_group": 0}, ConfigValueError, "n_group"),
    "num_experts_per_tok 0": ({"num_experts_per_tok": 0}, ConfigValueError, "num_experts_per_tok"),
    "odd rope": ({"qk_rope_head_dim": 7}, ConfigValueError, "even"),
    "yarn factor 0": ({"rope_scaling": {**YARN, "factor": 0}}, ConfigValueError, "factor"),
    "unknown topk_method": ({"topk_method": "best"}, ConfigValueError, "noaux_tc, greedy"),
    "unknown scoring_func": ({"scoring_func": "relu"}, ConfigValueError, "sigmoid, softmax"),
    "softmax in v3": ({"scoring_func": "softmax"}, UnsupportedConfigError, "deepseek_v3 has sigmoid"),
    "greedy in v3": ({"topk_method": "greedy"}, UnsupportedConfigError, "deepseek_v3 has noaux_tc"),
    "first_k_dense_replace above layers": ({"first_k_dense_replace": 4}, ConfigValueError, "from 0 to 3"),
    "mlp_layer_types short": ({"mlp_layer_types": ["dense"]}, ConfigValueError, "3 times"),
    "mlp_layer_types odd": ({"mlp_layer_types": ["dense", "wet", []]}, ConfigValueError, "dense or sparse"),
    "moe_layer_freq 0": ({"moe_layer_freq": 0}, ConfigValueError, "moe_layer_freq"),
    "model_type absent": ({"model_type": ...}, UnknownModelTypeError, "known: deepseek_v2, .*kimi_k2"),
    "model_type unknown": ({"model_type": "llama"}, UnknownModelTypeError, "'llama'"),
    "model_type no string": ({"model_type": ["deepseek_v3"]}, UnknownModelTypeError, "known"),
    "attention_bias": ({"attention_bias": True}, UnsupportedConfigError, "no bias"),
    "mlp_bias": ({"mlp_bias": True}, UnsupportedConfigError, "no bias"),
    "hidden_act": ({"hidden_act": "gelu"}, UnsupportedConfigError, "silu"),
    "grouped heads": ({"num_key_value_heads": 2}, UnsupportedConfigError, "num_attention_heads"),
    "norm_topk_prob 1": ({"norm_topk_prob": 1}, ConfigValueError, "true or false"),
    "routed_scaling_factor NaN": ({"routed_scaling_factor": math.nan}, ConfigValueError, "routed_scaling_factor"),
    "rms_norm_eps 0": ({"rms_norm_eps": 0.0}, ConfigValueError, "rms_norm_eps"),
    "max_position_embeddings 0": ({"max_position_embeddings": 0}, ConfigValueError, "max_position_embeddings"),
    "bos beyond the vocabulary": ({"bos_token_id": 96}, ConfigValueError, "bos_token_id"),
    "eos beyond the vocabulary": ({"eos_token_id": [1, 96]}, ConfigValueError, "eos_token_id"),
    "eos a string": ({"eos_token_id": "</s>"}, ConfigValueError, "eos_token_id"),
    "num_nextn_predict_layers -1": ({"num_nextn_predict_layers": -1}, ConfigValueError, "num_nextn"),
    "quantization no object": ({"quantization_config": "fp8"}, ConfigValueError, "an object"),
    "quantized as e5m2": ({"quantization_config": {**FP8, "fmt": "e5m2"}}, UnsupportedConfigError, "e4m3"),
    **{
        f"weight_block_size {block}": (
            {"quantization_config": {**FP8, "weight_block_size": block}}, ConfigValueError, "weight_block_size"
        )
        for block in ([], [128], [0, 128], [128.0, 128], "128")
    },
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_config_is_refused(case: str) -> None:
    overrides, error, reason = BAD[case]
    with pytest.raises(error, match=reason) as caught:
        parse(**overrides)
    assert str(PATH) in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"norm_topk_prob": True}, "disagree"),
        ({"rope_interleave": False}, "rotates neighbouring"),
        ({"scoring_func": "sigmoid"}, "deepseek_v2 has softmax"),
        ({"topk_method": "noaux_tc"}, "deepseek_v2 has greedy"),
    ],
)
def test_what_deepseek_v2_does_not_have(overrides: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedConfigError, match=reason):
        parse("deepseek_v2", **overrides)


@pytest.mark.parametrize(
    ("model_type", "key", "value"),
    [("deepseek_v32", "rope_interleave", False), ("deepseek_v32", "indexer_rope_interleave", True),
     ("glm_moe_dsa", "rope_interleave", False), ("glm_moe_dsa", "indexer_rope_interleave", False),
     ("minicpm3", "rope_interleave", True)],
)  # fmt: skip
def test_an_order_of_rotated_pairs_that_the_published_code_does_not_have(
    model_type: str, key: str, value: bool
) -> None:
    parse(model_type, **{key: not value})
    with pytest.raises(UnsupportedConfigError, match=f"{key} = {value} is not supported: {model_type} rotates"):
        parse(model_type, **{key: value})


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = sorted({*tiny_config("deepseek_v3"), "mlp_layer_types", "rope_scaling", "rope_parameters", "quantization_config",
               "num_nextn_predict_layers", "moe_layer_freq", "num_mtp_layers", "rope_interleave",
               "index_topk", "index_n_heads", "index_head_dim", "index_topk_freq", "index_topk_pattern",
               "index_skip_topk_offset", "indexer_types", "indexer_rope_interleave", "mtp_indexer",
               "scale_emb", "scale_depth", "dim_model_base", "score_bias"})  # fmt: skip


@settings(max_examples=300)
@given(
    st.sampled_from(MODEL_TYPES),
    st.dictionaries(st.sampled_from(KEYS), JSON_VALUES | st.integers(0, 16), max_size=4),
    st.dictionaries(st.sampled_from(sorted(YARN)), JSON_VALUES | st.floats(0, 100), max_size=3),
)
def test_any_values_give_a_config_or_a_typed_error(model_type: str, values: Any, yarn: Any) -> None:
    config = tiny_config(model_type, rope_scaling={**YARN, **yarn})
    for candidate in (values, {**config, **values}, config):
        try:
            parsed = ModelConfig.from_dict(candidate, PATH)
        except CheckpointError as error:
            str(error).encode()
            continue
        assert parsed.rope_inv_freq().shape == (parsed.qk_rope_head_dim // 2,)
        assert parsed.softmax_scale > 0 and parsed.rope_attention_factor > 0
        json.dumps(parsed.to_dict(), allow_nan=False)
