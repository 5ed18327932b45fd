"""Small configs of all model types, each with something that a compiler likes to get wrong.

Between them: q_lora_rank null; one group and four; real head sizes (192/64/256 and 128/64/128); widths that no power of
two divides; widths and vocabularies that are no multiple of 16; 5 heads; 0, 1 and 3 shared experts; YaRN with two
different mscales, with mscale_all_dim 0, without mscales, and no YaRN; both orders of rotated pairs; scaling factors of
1, 2.5 and 16; both values of norm_topk_prob; all layers dense and none; tied and own heads; an epsilon so much above
that of the latent norms that it shows when one is taken for the other; tokens whose experts are all identities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.checkpoints import tiny_config


def yarn(**overrides: Any) -> dict[str, Any]:
    return {
        "type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 32,
        "beta_slow": 1,
        **overrides,
    }


YARN = yarn(mscale=1.0, mscale_all_dim=1.0)
CONFIGS: Mapping[str, dict[str, Any]] = {
    "v3-grouped-yarn": tiny_config(
        "deepseek_v3",
        vocab_size=131,
        rope_scaling=yarn(mscale=0.707, mscale_all_dim=1.0),
    ),
    "v3-no-q-lora-one-group": tiny_config(
        "deepseek_v3",
        q_lora_rank=None,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=0,
        rope_interleave=False,
        norm_topk_prob=False,
        routed_scaling_factor=1.0,
        num_hidden_layers=2,
    ),
    "v3-all-dense-5-heads": tiny_config(
        "deepseek_v3",
        hidden_size=72,
        num_attention_heads=5,
        first_k_dense_replace=3,
        rope_scaling=yarn(),
    ),
    "v3-odd-widths-3-shared": tiny_config(
        "deepseek_v3",
        vocab_size=259,
        intermediate_size=342,
        moe_intermediate_size=44,
        n_shared_experts=3,
        q_lora_rank=40,
        kv_lora_rank=36,
        qk_nope_head_dim=12,
        v_head_dim=20,
    ),
    "v3-real-heads": tiny_config(
        "deepseek_v3",
        num_attention_heads=2,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_routed_experts=16,
        num_experts_per_tok=6,
        num_hidden_layers=2,
    ),
    "v3-no-shared": tiny_config("deepseek_v3", n_shared_experts=0, num_hidden_layers=2, n_group=2, topk_group=1),
    "v3-mtp-yarn": tiny_config(
        "deepseek_v3",
        num_hidden_layers=2,
        num_nextn_predict_layers=1,
        rope_scaling=yarn(mscale=1.0, mscale_all_dim=0),
    ),
    "v2-greedy": tiny_config(
        "deepseek_v2",
        q_lora_rank=None,
        intermediate_size=342,
        moe_intermediate_size=44,
        n_shared_experts=3,
        routed_scaling_factor=1.0,
        n_group=1,
        topk_group=1,
    ),
    "v2-group-limited-yarn": tiny_config(
        "deepseek_v2",
        vocab_size=131,
        topk_method="group_limited_greedy",
        routed_scaling_factor=16.0,
        rope_scaling=yarn(mscale=0.707, mscale_all_dim=0.707),
    ),
    "v2-5-heads": tiny_config(
        "deepseek_v2",
        hidden_size=80,
        num_attention_heads=5,
        first_k_dense_replace=0,
        num_hidden_layers=2,
        rope_scaling=yarn(mscale=1.0, mscale_all_dim=0),
    ),
    "glm-real-heads": tiny_config(
        "glm4_moe_lite",
        num_attention_heads=3,
        kv_lora_rank=512,
        qk_nope_head_dim=192,
        qk_rope_head_dim=64,
        v_head_dim=256,
        num_hidden_layers=2,
        mlp_layer_types=["dense", "sparse"],
        routed_scaling_factor=1.8,
    ),
    "glm-grouped-5-heads": tiny_config(
        "glm4_moe_lite",
        vocab_size=259,
        num_attention_heads=5,
        q_lora_rank=None,
        moe_intermediate_size=40,
        n_group=4,
        topk_group=2,
        rope_interleave=False,
        norm_topk_prob=False,
        rms_norm_eps=1e-2,
        mlp_layer_types=["sparse", "dense", "sparse"],
    ),
    "glm-mtp": tiny_config(
        "glm4_moe_lite",
        num_hidden_layers=2,
        num_nextn_predict_layers=1,
        mlp_layer_types=["dense", "sparse"],
    ),
    "youtu-tied-5-heads": tiny_config(
        "youtu",
        vocab_size=259,
        hidden_size=72,
        intermediate_size=171,
        num_attention_heads=5,
        q_lora_rank=None,
        rope_interleave=False,
    ),
    "kimi-k25-yarn": tiny_config(
        "kimi_k25",
        vocab_size=131,
        num_hidden_layers=2,
        rope_scaling=YARN,
    ),
    "v32-mtp-yarn": tiny_config(
        "deepseek_v32",
        num_hidden_layers=2,
        num_nextn_predict_layers=1,
        rope_scaling=YARN,
    ),
    "glm-dsa-real-heads": tiny_config(
        "glm_moe_dsa",
        num_attention_heads=3,
        kv_lora_rank=512,
        qk_nope_head_dim=192,
        qk_rope_head_dim=64,
        v_head_dim=256,
        index_head_dim=128,
        n_group=1,
        topk_group=1,
        rms_norm_eps=1e-5,
    ),
    "glm-dsa-mtp": tiny_config(
        "glm_moe_dsa",
        num_hidden_layers=2,
        num_nextn_predict_layers=1,
        mlp_layer_types=["dense", "sparse"],
    ),
    "axk1-grouped-yarn": tiny_config(
        "axk1",
        vocab_size=259,
        rms_norm_eps=1e-2,
        rope_scaling=YARN,
    ),
    "mistral4-scaled-queries": tiny_config(
        "mistral4",
        vocab_size=131,
        rope_theta=...,
        rope_parameters={
            **YARN,
            "original_max_position_embeddings": 16,
            "rope_theta": 10000.0,
            "llama_4_scaling_beta": 0.5,
        },
    ),
    "mistral4-one-group": tiny_config(
        "mistral4",
        num_hidden_layers=2,
        n_group=1,
        topk_group=1,
        q_lora_rank=None,
        first_k_dense_replace=0,
        n_shared_experts=3,
        routed_scaling_factor=1.0,
        rope_parameters={**yarn(mscale=1.0, mscale_all_dim=0.5), "rope_theta": 1e6, "llama_4_scaling_beta": 0.1},
    ),
    "minicpm3-longrope": tiny_config(
        "minicpm3",
        vocab_size=131,
        hidden_size=80,
        num_attention_heads=5,
        rms_norm_eps=1e-2,
        original_max_position_embeddings=400,
        rope_scaling={"type": "longrope", "short_factor": [1.0, 1.1, 1.5, 2.5], "long_factor": [1.0, 1.2, 4.0, 9.0]},
    ),
    "minicpm3-own-head": tiny_config("minicpm3", tie_word_embeddings=False, q_lora_rank=None, scale_depth=2.0),
    "longcat-zero-experts": tiny_config(
        "longcat_flash",
        vocab_size=131,
        zero_expert_num=5,
        moe_topk=4,
        rms_norm_eps=1e-2,
        routed_scaling_factor=6.0,
    ),
    "longcat-mtp": tiny_config("longcat_flash", num_layers=1, num_nextn_predict_layers=1),
    "longcat-one-layer-yarn": tiny_config(
        "longcat_flash",
        num_layers=1,
        num_attention_heads=5,
        num_key_value_heads=5,
        zero_expert_num=0,
        kv_lora_rank=36,
        rope_scaling=yarn(mscale=1.0, mscale_all_dim=1.0),
    ),
    "youtu-own-head-yarn": tiny_config(
        "youtu",
        tie_word_embeddings=False,
        rope_scaling=YARN,
        rms_norm_eps=1e-2,
    ),
}
