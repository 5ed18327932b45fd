"""The hyperparameters of a model, under the names of Hugging Face's config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsv3c.compiler.checkpoint import quantised
from dsv3c.compiler.checkpoint.errors import UnknownModelTypeError
from dsv3c.compiler.checkpoint.fields import MAX_WIDTH, ConfigFields
from dsv3c.compiler.checkpoint.files import quote
from dsv3c.compiler.checkpoint.indexer import NONE, has_indexer, parse_indexer
from dsv3c.compiler.checkpoint.infer import infer_missing
from dsv3c.compiler.checkpoint.members import MEMBERS, SAME_AS, WRAPPERS, Member, member_of, with_defaults
from dsv3c.compiler.checkpoint.other_keys import check_other_keys, unknown_keys
from dsv3c.compiler.checkpoint.rope import (
    MAX_POSITIONS,
    LongRope,
    RopeScaling,
    inverse_frequencies,
    parse_query_scales,
    parse_rope,
    stored_scaling,
)
from dsv3c.compiler.checkpoint.routing import Routing
from dsv3c.compiler.checkpoint.scales import parse_scales
from dsv3c.compiler.checkpoint.tokenizer import usable_ids

MODEL_TYPES = tuple(MEMBERS)
LAYER_TYPES = ("dense", "sparse")
SHORTCUT = "shortcut"  # a dense layer with experts besides, see ModelConfig

# Largest values taken for honest. They are far above every published model and keep the products below 2^63.
MAX_VOCABULARY = 2**24
MAX_HEAD_DIM = 2**12
MAX_HEADS = 2**12
MAX_LAYERS = 2**12


@dataclass(frozen=True)
class ModelConfig:
    """A checked config. Its `model_type` is one of MODEL_TYPES: `kimi_k2` is read as the `deepseek_v3` it is.

    A model without experts has 0 in the sizes of experts. `greedy` routing has no groups, so n_group and topk_group are
    1 with it whatever config.json says. `mlp_layer_types` covers the main layers, then the MTP layers: "dense";
    "sparse", with experts; "shortcut", with experts beside the dense MLP, whose output is added behind the next layer.
    num_hidden_layers counts blocks of attention.

    zero_expert_num: how many more than the experts tokens choose among, which give back what they are given. latent
    scales: what the normalised latents of queries and of keys and values are multiplied by.
    score_bias: whether experts have a bias that they are chosen by. post_mlp_norm: whether what experts give is
    normalised. index_topk: positions that a token attends to at most, 0: all. indexer_types: for main layers, then
    those of MTP, whether it chooses them ("full"), takes the choice of the last layer that did ("shared"), or does
    without ("none"); empty where no context is longer than index_topk. index_interleave: as rope_interleave, of the
    indexer. max_position_embeddings is not above any length up to which the model is what it is compiled as.
    embedding_scale, logits_scale: what embedding and head are multiplied by; residual_scale: what a layer's attention
    and feed-forward are, before they are added. query_scales: what queries are multiplied by, one number for each
    query_scale_block positions.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_nextn_predict_layers: int
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    first_k_dense_replace: int
    mlp_layer_types: tuple[str, ...]
    scoring_func: str
    topk_method: str
    norm_topk_prob: bool
    routed_scaling_factor: float
    rms_norm_eps: float
    rope_theta: float
    rope_interleave: bool
    rope_scaling: RopeScaling | LongRope | None
    max_position_embeddings: int
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    weight_block_size: tuple[int, int] | None
    score_bias: bool = True
    post_mlp_norm: bool = False
    index_topk: int = 0
    index_n_heads: int = 0
    index_head_dim: int = 0
    index_interleave: bool = False
    indexer_types: tuple[str, ...] = ()
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    query_scales: tuple[float, ...] = ()
    query_scale_block: int = 1
    zero_expert_num: int = 0
    q_latent_scale: float = 1.0
    kv_latent_scale: float = 1.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], path: Path) -> ModelConfig:
        """The config in the object of a config.json; `path` is for messages. Raises a typed error for every fault."""
        config = ConfigFields(with_defaults(with_canonical_names(values)), path)
        model_type = _model_type(config)
        _refuse_unsupported(config, MEMBERS[model_type])
        check_other_keys(config, MEMBERS[model_type])
        layers = _layer_count(config, model_type)
        sizes = _Sizes.parse(config, layers)
        routing = Routing.parse(config, model_type)
        max_positions = config.integer("max_position_embeddings", 1, MAX_POSITIONS)
        head = sizes.qk_nope_head_dim + sizes.qk_rope_head_dim
        rotated = sizes.qk_rope_head_dim / head if MEMBERS[model_type].whole_head_rotary else 1.0
        theta, scaling = parse_rope(config, max_positions, rotated)
        query_scales, query_scale_block = parse_query_scales(config, max_positions)
        main_types = _main_layer_types(config, model_type, layers, routing.n_routed_experts)
        mtp_type = "sparse" if routing.n_routed_experts and not MEMBERS[model_type].paired else "dense"
        first_dense = next((layer for layer, kind in enumerate(main_types) if kind != "dense"), layers)
        context = min(max_positions, _longest(scaling))
        mtp_layers = sizes.num_nextn_predict_layers
        return cls(
            model_type=model_type,
            **vars(sizes),
            **vars(routing),
            first_k_dense_replace=first_dense,
            mlp_layer_types=main_types + (mtp_type,) * mtp_layers,
            rms_norm_eps=config.number("rms_norm_eps", 1e-30, 1.0),
            rope_theta=theta,
            rope_interleave=config.boolean("rope_interleave", True),
            rope_scaling=scaling,
            max_position_embeddings=context,
            tie_word_embeddings=config.boolean("tie_word_embeddings", False),
            bos_token_id=_token_id(config, "bos_token_id", sizes.vocab_size),
            eos_token_ids=_eos_token_ids(config, sizes.vocab_size),
            pad_token_id=_token_id(config, "pad_token_id", sizes.vocab_size),
            weight_block_size=_weight_block_size(config),
            post_mlp_norm=MEMBERS[model_type].post_mlp_norm,
            **parse_indexer(config, layers, mtp_layers, sizes.qk_rope_head_dim, context),
            query_scales=query_scales,
            query_scale_block=query_scale_block,
            **parse_scales(config, layers, sizes.hidden_size, sizes.q_lora_rank, sizes.kv_lora_rank),
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, for a manifest."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_stored(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`; keys that are no fields are left out, absent younger ones have defaults."""
        required = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
        names = (field.name for field in dataclasses.fields(cls))
        stored = {name: values[name] for name in names if name in values or name in required}
        named: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()
        }
        return cls(**named | {"rope_scaling": stored_scaling(named["rope_scaling"])})

    def without_mtp(self) -> ModelConfig:
        layers = slice(self.num_hidden_layers)
        main_types, indexers = self.mlp_layer_types[layers], self.indexer_types[layers]
        return dataclasses.replace(self, num_nextn_predict_layers=0, mlp_layer_types=main_types, indexer_types=indexers)

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """What one token takes in one layer's cache."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def index_norm_eps(self) -> float:
        """Epsilon of the indexer's k_norm, which no config sets."""
        return 1e-6

    def indexer_type(self, layer: int) -> str:
        """As in indexer_types; "none" for all layers of a model without."""
        return self.indexer_types[layer] if layer < len(self.indexer_types) else NONE

    @property
    def latent_norm_eps(self) -> float:
        """Epsilon of q_a_layernorm and kv_a_layernorm, which no published config sets: not `rms_norm_eps`."""
        return 1e-6

    @property
    def stream_norm_eps(self) -> float:
        """Epsilon of the norms of x, which is kept divided by residual_scale."""
        return self.rms_norm_eps / self.residual_scale**2

    @property
    def softmax_scale(self) -> float:
        factor = self.rope_scaling.softmax_factor if self.rope_scaling else 1.0
        return float(self.qk_head_dim**-0.5 * factor)

    @property
    def rope_attention_factor(self) -> float:
        """What cos and sin of the rotary embedding are multiplied by."""
        return self.rope_scaling.rotation_scale if self.rope_scaling else 1.0

    def rope_inv_freq(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Angle per position of each rotated pair: float32 [qk_rope_head_dim/2]."""
        return inverse_frequencies(self.qk_rope_head_dim, self.rope_theta, self.rope_scaling)

    def is_moe(self, layer: int) -> bool:
        """Whether `layer` (MTP layers come after the main ones) has experts."""
        return self.mlp_layer_types[layer] != "dense"

    def has_mlp(self, layer: int) -> bool:
        """Whether it has a dense MLP, which shared experts are not."""
        return self.mlp_layer_types[layer] != "sparse"


def complete_config(
    given: Mapping[str, Any], path: Path, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[ModelConfig, tuple[str, ...]]:
    """The config of a text model's config.json, or what stands for it, and a sentence for each value that it lacks and
    `shapes` gave, and for each special id that is left out.

    shapes: of the stored tensors by name. `path` is for messages. Raises a typed error for every fault of config.json.
    """
    values, notes = infer_missing(with_canonical_names(given), shapes)
    values, left_out = usable_ids(values)
    if shapes and values.get("score_bias") is None:
        values["score_bias"] = any(name.endswith("e_score_correction_bias") for name in shapes)
    if shapes and values.get("mtp_indexer") is None:
        values["mtp_indexer"] = has_indexer(values.get("num_hidden_layers"), shapes)
    config = ModelConfig.from_dict(values, path)
    return config, notes + left_out + _limit_notes(config, values) + unknown_keys(values)


def with_canonical_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the other names that some keys and model types have replaced."""
    model_type = values.get("model_type")
    model_type = SAME_AS.get(model_type, model_type) if isinstance(model_type, str) else model_type
    aliases = {
        "num_mtp_layers": "num_nextn_predict_layers",
        "num_local_experts": "n_routed_experts",
        "num_experts": "n_routed_experts",
        **member_of({"model_type": model_type}).aliases,
    }
    named = {key: value for key, value in values.items() if key not in aliases}
    for alias, key in aliases.items():
        if alias in values:
            named.setdefault(key, values[alias])
    return named | {"model_type": model_type} if "model_type" in named else named


@dataclass(frozen=True)
class _Sizes:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_nextn_predict_layers: int
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    @classmethod
    def parse(cls, config: ConfigFields, layers: int) -> _Sizes:
        heads = config.integer("num_attention_heads", 1, MAX_HEADS)
        if config.integer("num_key_value_heads", 1, MAX_HEADS, heads) != heads:
            raise config.unsupported("num_key_value_heads", f"it must equal num_attention_heads, {heads}")
        rope_dim = config.integer("qk_rope_head_dim", 2, MAX_HEAD_DIM)
        if rope_dim % 2:
            raise config.wrong("qk_rope_head_dim", "an even number")
        return cls(
            vocab_size=config.integer("vocab_size", 1, MAX_VOCABULARY),
            hidden_size=config.integer("hidden_size", 1, MAX_WIDTH),
            intermediate_size=config.integer("intermediate_size", 1, MAX_WIDTH),
            num_hidden_layers=layers,
            num_nextn_predict_layers=config.integer("num_nextn_predict_layers", 0, MAX_LAYERS, 0),
            num_attention_heads=heads,
            q_lora_rank=None if config.is_null("q_lora_rank") else config.integer("q_lora_rank", 1, MAX_WIDTH),
            kv_lora_rank=config.integer("kv_lora_rank", 1, MAX_WIDTH),
            qk_nope_head_dim=config.integer("qk_nope_head_dim", 1, MAX_HEAD_DIM),
            qk_rope_head_dim=rope_dim,
            v_head_dim=config.integer("v_head_dim", 1, MAX_HEAD_DIM),
        )


def _longest(scaling: RopeScaling | LongRope | None) -> int:
    """The context up to which the model is what it is compiled as."""
    return scaling.longest if isinstance(scaling, LongRope) and scaling.longest else MAX_POSITIONS


def _limit_notes(config: ModelConfig, values: Mapping[str, Any]) -> tuple[str, ...]:
    wanted, kept = values["max_position_embeddings"], config.max_position_embeddings
    if wanted == kept:
        return ()
    reason = "beyond original_max_position_embeddings other factors would rotate all keys"
    return (f"the context is {kept} tokens, not the {wanted} of max_position_embeddings: {reason}",)


def _model_type(config: ConfigFields) -> str:
    model_type = config.values.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise UnknownModelTypeError(
            path=config.path, model_type=quote(model_type), known=", ".join((*MODEL_TYPES, *SAME_AS, *WRAPPERS))
        )
    return model_type


def _refuse_unsupported(config: ConfigFields, member: Member) -> None:
    for key, (value, reason) in member.fixed.items():
        if config.boolean(key, value) != value:
            raise config.unsupported(key, reason)
    for key in ("attention_bias", "mlp_bias"):
        if config.boolean(key, False):
            raise config.unsupported(key, "projections have no bias")
    if config.has("hidden_act") and config.values["hidden_act"] != "silu":
        raise config.unsupported("hidden_act", "known is silu")


def _layer_count(config: ConfigFields, model_type: str) -> int:
    if MEMBERS[model_type].paired:
        return 2 * config.integer("num_layers", 1, MAX_LAYERS // 2)
    return config.integer("num_hidden_layers", 1, MAX_LAYERS)


def _main_layer_types(config: ConfigFields, model_type: str, layers: int, experts: int) -> tuple[str, ...]:
    """The kind of each of the main layers."""
    if not experts:
        return ("dense",) * layers
    if MEMBERS[model_type].paired:
        return (SHORTCUT, "dense") * (layers // 2)
    if config.has("mlp_layer_types"):
        types = config.values["mlp_layer_types"]
        if not isinstance(types, list) or len(types) != layers or not all(kind in LAYER_TYPES for kind in types):
            raise config.wrong("mlp_layer_types", f"a list of {layers} times dense or sparse")
        return tuple(types)
    first = config.integer("first_k_dense_replace", 0, layers)
    every = config.integer("moe_layer_freq", 1, MAX_LAYERS, 1)
    return tuple("sparse" if layer >= first and layer % every == 0 else "dense" for layer in range(layers))


def _token_id(config: ConfigFields, key: str, vocab_size: int) -> int | None:
    return config.integer(key, 0, vocab_size - 1) if config.has(key) else None


def _eos_token_ids(config: ConfigFields, vocab_size: int) -> tuple[int, ...]:
    value = config.values.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token) is int and 0 <= token < vocab_size for token in ids):
        raise config.wrong("eos_token_id", f"a token id or a list of them, each below {vocab_size}")
    return tuple(ids)


def _weight_block_size(config: ConfigFields) -> tuple[int, int] | None:
    found = quantised.quantization_config(config)
    return quantised.block_size(found) if found.values.get("quant_method") == quantised.FP8 else None
