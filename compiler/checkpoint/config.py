"""The hyperparameters of a model, under the names of Hugging Face's config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsv3c.compiler.checkpoint import quantised
from dsv3c.compiler.checkpoint.fields import ConfigFields
from dsv3c.compiler.checkpoint.files import quote, read_object
from dsv3c.compiler.checkpoint.infer import infer_missing
from dsv3c.compiler.checkpoint.rope import MAX_POSITIONS, RopeScaling, inverse_frequencies, parse_rope
from dsv3c.compiler.checkpoint.tokenizer import usable_ids
from dsv3c.compiler.errors import ConfigConflictError, UnknownModelTypeError

MODEL_TYPES = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "youtu")
SAME_AS = {"kimi_k2": "deepseek_v3", "youtu_llm": "youtu"}  # names under which the same architecture was published
SCORING_FUNCS = ("sigmoid", "softmax")
TOPK_METHODS = ("noaux_tc", "greedy", "group_limited_greedy")
LAYER_TYPES = ("dense", "sparse")

# Largest values taken for honest. They are far above every published model and keep the products below 2^63.
MAX_VOCABULARY = 2**24
MAX_WIDTH = 2**20
MAX_HEAD_DIM = 2**12
MAX_HEADS = 2**12
MAX_LAYERS = 2**12
MAX_EXPERTS = 2**14


@dataclass(frozen=True)
class ModelConfig:
    """A checked config. Its `model_type` is one of MODEL_TYPES: `kimi_k2` is read as the `deepseek_v3` it is.

    A model without experts has 0 in the sizes of experts. `greedy` routing has no groups, so n_group and topk_group are
    1 with it whatever config.json says. `mlp_layer_types` covers the main layers, then the MTP layers.
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
    rope_scaling: RopeScaling | None
    max_position_embeddings: int
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    weight_block_size: tuple[int, int] | None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], path: Path) -> ModelConfig:
        """The config in the object of a config.json; `path` is for messages. Raises a typed error for every fault."""
        config = ConfigFields(with_canonical_names(values), path)
        model_type = _model_type(config)
        _refuse_unsupported(config)
        layers = config.integer("num_hidden_layers", 1, MAX_LAYERS)
        sizes = _Sizes.parse(config, layers)
        router = _Router.parse(config, model_type)
        max_positions = config.integer("max_position_embeddings", 1, MAX_POSITIONS)
        theta, scaling = parse_rope(config, max_positions)
        main_types = _main_layer_types(config, model_type, layers, router.n_routed_experts)
        mtp_type = "sparse" if router.n_routed_experts else "dense"
        first_dense = main_types.index("sparse") if "sparse" in main_types else layers
        return cls(
            model_type=model_type,
            **vars(sizes),
            **vars(router),
            first_k_dense_replace=first_dense,
            mlp_layer_types=main_types + (mtp_type,) * sizes.num_nextn_predict_layers,
            rms_norm_eps=config.number("rms_norm_eps", 1e-30, 1.0),
            rope_theta=theta,
            rope_interleave=_rope_interleave(config, model_type),
            rope_scaling=scaling,
            max_position_embeddings=max_positions,
            tie_word_embeddings=config.boolean("tie_word_embeddings", model_type == "youtu"),
            bos_token_id=_token_id(config, "bos_token_id", sizes.vocab_size),
            eos_token_ids=_eos_token_ids(config, sizes.vocab_size),
            pad_token_id=_token_id(config, "pad_token_id", sizes.vocab_size),
            weight_block_size=_weight_block_size(config),
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, for a manifest."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_stored(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`; keys that are no fields are left out."""
        stored = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        named: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()
        }
        scaling = named.pop("rope_scaling")
        return cls(**named, rope_scaling=None if scaling is None else RopeScaling(**scaling))

    def without_mtp(self) -> ModelConfig:
        main_types = self.mlp_layer_types[: self.num_hidden_layers]
        return dataclasses.replace(self, num_nextn_predict_layers=0, mlp_layer_types=main_types)

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """What one token takes in one layer's cache."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def latent_norm_eps(self) -> float:
        """Epsilon of q_a_layernorm and kv_a_layernorm, which no published config sets: not `rms_norm_eps`."""
        return 1e-6

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
        return self.mlp_layer_types[layer] == "sparse"


def load_config(
    folder: Path, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[ModelConfig, tuple[str, ...]]:
    """The config of a checkpoint folder, and a sentence for each value that config.json lacks and `shapes` gave, and
    for each special id that is left out.

    `shapes` are the shapes of the stored tensors by name. Raises a typed error for every fault of config.json.
    """
    path = folder / "config.json"
    return complete_config(read_object(path), path, shapes or {})


def complete_config(
    given: Mapping[str, Any], path: Path, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[ModelConfig, tuple[str, ...]]:
    """As `load_config`, of what is in config.json, or stands for it; `path` is for messages."""
    values, notes = infer_missing(with_canonical_names(given), shapes)
    values, left_out = usable_ids(values)
    return ModelConfig.from_dict(values, path), notes + left_out


def with_canonical_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the other names that some keys and model types have replaced."""
    aliases = {
        "num_mtp_layers": "num_nextn_predict_layers",
        "num_local_experts": "n_routed_experts",
        "num_experts": "n_routed_experts",
    }
    named = {key: value for key, value in values.items() if key not in aliases}
    for alias, key in aliases.items():
        if alias in values:
            named.setdefault(key, values[alias])
    model_type = named.get("model_type")
    if isinstance(model_type, str):
        named["model_type"] = SAME_AS.get(model_type, model_type)
    return named


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
        q_rank = (
            config.integer("q_lora_rank", 1, MAX_WIDTH) if config.values.get("q_lora_rank", 0) is not None else None
        )
        return cls(
            vocab_size=config.integer("vocab_size", 1, MAX_VOCABULARY),
            hidden_size=config.integer("hidden_size", 1, MAX_WIDTH),
            intermediate_size=config.integer("intermediate_size", 1, MAX_WIDTH),
            num_hidden_layers=layers,
            num_nextn_predict_layers=config.integer("num_nextn_predict_layers", 0, MAX_LAYERS, 0),
            num_attention_heads=heads,
            q_lora_rank=q_rank,
            kv_lora_rank=config.integer("kv_lora_rank", 1, MAX_WIDTH),
            qk_nope_head_dim=config.integer("qk_nope_head_dim", 1, MAX_HEAD_DIM),
            qk_rope_head_dim=rope_dim,
            v_head_dim=config.integer("v_head_dim", 1, MAX_HEAD_DIM),
        )


@dataclass(frozen=True)
class _Router:
    moe_intermediate_size: int = 0
    n_routed_experts: int = 0
    n_shared_experts: int = 0
    num_experts_per_tok: int = 0
    n_group: int = 1
    topk_group: int = 1
    scoring_func: str = "sigmoid"
    topk_method: str = "noaux_tc"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0

    @classmethod
    def parse(cls, config: ConfigFields, model_type: str) -> _Router:
        if model_type == "youtu" or ("n_routed_experts" in config.values and not config.has("n_routed_experts")):
            return cls()
        experts = config.integer("n_routed_experts", 0, MAX_EXPERTS)
        if experts == 0:
            return cls()
        scoring, method, norm = _routing_kind(config, model_type)
        n_group, topk_group = 1, 1
        if method != "greedy":
            n_group = config.integer("n_group", 1, MAX_EXPERTS)
            topk_group = config.integer("topk_group", 1, MAX_EXPERTS)
        router = cls(
            moe_intermediate_size=config.integer("moe_intermediate_size", 1, MAX_WIDTH),
            n_routed_experts=experts,
            n_shared_experts=config.integer("n_shared_experts", 0, MAX_EXPERTS, 0),
            num_experts_per_tok=config.integer("num_experts_per_tok", 1, MAX_EXPERTS),
            n_group=n_group,
            topk_group=topk_group,
            scoring_func=scoring,
            topk_method=method,
            norm_topk_prob=norm,
            routed_scaling_factor=config.number("routed_scaling_factor", 1e-6, 1e6),
        )
        reason = router.conflict()
        if reason:
            raise ConfigConflictError(path=config.path, reason=reason)
        return router

    def conflict(self) -> str:
        """Why the sizes cannot go together, empty when they do."""
        if self.n_routed_experts % self.n_group:
            return f"n_routed_experts {self.n_routed_experts} is not a multiple of n_group {self.n_group}"
        if self.topk_group > self.n_group:
            return f"topk_group {self.topk_group} is above n_group {self.n_group}"
        group = self.n_routed_experts // self.n_group
        if self.topk_method == "noaux_tc" and group < 2:
            return f"groups of {group} expert are too small: noaux_tc ranks a group by its two best"
        if self.num_experts_per_tok > group * self.topk_group:
            return (
                f"num_experts_per_tok {self.num_experts_per_tok} is above the {group * self.topk_group} experts"
                f" of {self.topk_group} groups"
            )
        return ""


def _routing_kind(config: ConfigFields, model_type: str) -> tuple[str, str, bool]:
    """(scoring_func, topk_method, norm_topk_prob): each model type has the kinds its published code has."""
    is_v2 = model_type == "deepseek_v2"
    scorings, methods = (("softmax",), ("greedy", "group_limited_greedy")) if is_v2 else (("sigmoid",), ("noaux_tc",))
    scoring = config.choice("scoring_func", SCORING_FUNCS, scorings[0])
    if scoring not in scorings:
        raise config.unsupported("scoring_func", f"{model_type} has {scorings[0]}")
    method = config.choice("topk_method", TOPK_METHODS, methods[0])
    if method not in methods:
        raise config.unsupported("topk_method", f"{model_type} has {' or '.join(methods)}")
    norm = config.boolean("norm_topk_prob", False if is_v2 else None)
    if is_v2 and norm:
        raise config.unsupported("norm_topk_prob", "the published programs of deepseek_v2 disagree on it")
    return scoring, method, norm


def _model_type(config: ConfigFields) -> str:
    model_type = config.values.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise UnknownModelTypeError(
            path=config.path, model_type=quote(model_type), known=", ".join((*MODEL_TYPES, *SAME_AS))
        )
    return model_type


def _refuse_unsupported(config: ConfigFields) -> None:
    for key in ("attention_bias", "mlp_bias"):
        if config.boolean(key, False):
            raise config.unsupported(key, "projections have no bias")
    if config.has("hidden_act") and config.values["hidden_act"] != "silu":
        raise config.unsupported("hidden_act", "known is silu")


def _rope_interleave(config: ConfigFields, model_type: str) -> bool:
    interleave = config.boolean("rope_interleave", True)
    if model_type == "deepseek_v2" and not interleave:
        raise config.unsupported("rope_interleave", "deepseek_v2 rotates neighbouring elements")
    return interleave


def _main_layer_types(config: ConfigFields, model_type: str, layers: int, experts: int) -> tuple[str, ...]:
    """ "dense" or "sparse" for each of the main layers."""
    if not experts:
        return ("dense",) * layers
    if config.has("mlp_layer_types"):
        types = config.values["mlp_layer_types"]
        if not isinstance(types, list) or len(types) != layers or not all(kind in LAYER_TYPES for kind in types):
            raise config.wrong("mlp_layer_types", f"a list of {layers} times dense or sparse")
        return tuple(types)
    # transformers makes the first layer of a GLM dense when the config says nothing.
    first = config.integer("first_k_dense_replace", 0, layers, 1 if model_type == "glm4_moe_lite" else None)
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
