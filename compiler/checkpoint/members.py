"""The members of the family: what the published code of each has that a config.json does not say.

Sources: the modeling and configuration files of transformers under each name. What differs and is a key of config.json
stands in ModelConfig alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Member:
    """One model type.

    scorings, methods: the kinds of routing it has, the default first. score_bias: whether experts are chosen by their
    scores and a bias each; None: as the checkpoint has it. post_mlp_norm: whether what experts give is normalised.
    dense: it has no experts, whatever config.json says. whole_head_rotary: partial_rotary_factor is a part of the whole
    head, not of qk_rope_head_dim. paired: what it calls a layer, in num_layers and in names, is two of ours, see
    `paired.py`. aliases: its names of keys. defaults: values of keys that config.json leaves out. fixed: keys that it
    does not read, each with the one value it computes by and why no other is taken. keys: those that change what it
    computes and that no other member reads.
    """

    scorings: tuple[str, ...] = ("sigmoid",)
    methods: tuple[str, ...] = ("noaux_tc",)
    score_bias: bool | None = True
    post_mlp_norm: bool = False
    dense: bool = False
    whole_head_rotary: bool = False
    paired: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, tuple[bool, str]] = field(default_factory=dict)
    keys: tuple[str, ...] = ()


_SPARSE_ATTENTION = {"index_topk": 2048, "index_head_dim": 128, "index_n_heads": 64, "first_k_dense_replace": 3}
_MISTRAL4_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 128.0,
    "original_max_position_embeddings": 8192,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def _pairs(who: str, *, interleave: bool) -> tuple[bool, str]:
    """The one order of rotated pairs that a member has."""
    return interleave, f"{who} rotates {'neighbouring elements' if interleave else 'the halves'}"


MEMBERS: Mapping[str, Member] = {
    "deepseek_v2": Member(
        scorings=("softmax",),
        methods=("greedy", "group_limited_greedy"),
        fixed={
            "rope_interleave": _pairs("deepseek_v2", interleave=True),
            "norm_topk_prob": (False, "the published programs of deepseek_v2 disagree on it"),
        },
    ),
    "deepseek_v3": Member(),
    "deepseek_v32": Member(
        defaults=_SPARSE_ATTENTION,
        fixed={
            "rope_interleave": _pairs("deepseek_v32", interleave=True),
            "indexer_rope_interleave": _pairs("deepseek_v32", interleave=False),
        },
    ),
    "glm4_moe_lite": Member(defaults={"first_k_dense_replace": 1}),
    "glm_moe_dsa": Member(
        defaults={**_SPARSE_ATTENTION, "index_n_heads": 32, "indexer_rope_interleave": True},
        fixed={
            "rope_interleave": _pairs("glm_moe_dsa", interleave=True),
            "indexer_rope_interleave": _pairs("glm_moe_dsa", interleave=True),
        },
    ),
    "mistral4": Member(
        scorings=("softmax",),
        score_bias=False,
        whole_head_rotary=True,
        defaults={"first_k_dense_replace": 0, "rope_parameters": _MISTRAL4_ROPE},
    ),
    "axk1": Member(score_bias=None, post_mlp_norm=True, defaults={"first_k_dense_replace": 1}),
    "minicpm3": Member(
        dense=True,
        defaults={
            "tie_word_embeddings": True,
            "rope_interleave": False,
            "scale_emb": 12,
            "scale_depth": 1.4,
            "dim_model_base": 256,
        },
        fixed={"rope_interleave": _pairs("minicpm3", interleave=False)},
        keys=("scale_emb", "scale_depth", "dim_model_base"),
    ),
    "longcat_flash": Member(
        scorings=("softmax",),
        paired=True,
        aliases={
            "ffn_hidden_size": "intermediate_size",
            "expert_ffn_hidden_size": "moe_intermediate_size",
            "moe_topk": "num_experts_per_tok",
        },
        defaults={
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "zero_expert_num": 256,
            "mla_scale_q_lora": True,
            "mla_scale_kv_lora": True,
            "rope_theta": 1e7,
        },
        fixed={
            "rope_interleave": _pairs("longcat_flash", interleave=True),
            "norm_topk_prob": (False, "longcat_flash weighs experts by their scores as they are"),
        },
        keys=("zero_expert_num", "mla_scale_q_lora", "mla_scale_kv_lora"),
    ),
    "youtu": Member(dense=True, defaults={"tie_word_embeddings": True}),
}
SAME_AS = {"kimi_k2": "deepseek_v3", "youtu_llm": "youtu"}  # names under which the same architecture was published
# Multimodal models around a member, and the member where their text_config does not name it.
WRAPPERS = {"kimi_k25": "deepseek_v3", "kimi_vl": "deepseek_v3", "mistral3": "mistral4"}


def member_of(values: Mapping[str, Any]) -> Member:
    """The member whose config.json has these values, one without peculiarities where none is named."""
    return MEMBERS.get(str(values.get("model_type")), Member())


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of a config.json with what the code of its model type takes for absent keys; null stays null."""
    return {**member_of(values).defaults, **values}
