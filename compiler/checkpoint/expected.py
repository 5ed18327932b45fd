"""Which tensors a checkpoint must hold, told from its config alone.

Names are logical: `*` stands for the number of an expert, and such a tensor has the experts as its first dimension.
"""

from __future__ import annotations

from dsv3c.compiler.checkpoint.config import ModelConfig
from dsv3c.compiler.checkpoint.indexer import FULL, INDEXER

Shapes = dict[str, tuple[int, ...]]
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def required_tensors(config: ModelConfig) -> Shapes:
    """Name and shape of each tensor that must be there, in the order of the computation."""
    shapes: Shapes = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    for layer in range(config.num_hidden_layers):
        shapes |= _layer(config, layer)
    shapes["model.norm.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, config.hidden_size)
    for layer in _mtp_layers(config):
        shapes |= _mtp(config, layer)
    return shapes


def optional_tensors(config: ModelConfig) -> Shapes:
    """What may be there besides: own copies of embedding and head in an MTP layer."""
    table = (config.vocab_size, config.hidden_size)
    names = ("embed_tokens.weight", "shared_head.head.weight")
    return {f"model.layers.{layer}.{name}": table for layer in _mtp_layers(config) for name in names}


def _mtp_layers(config: ModelConfig) -> range:
    return range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers)


def _mtp(config: ModelConfig, layer: int) -> Shapes:
    prefix, hidden = f"model.layers.{layer}.", config.hidden_size
    return {
        prefix + "enorm.weight": (hidden,),
        prefix + "hnorm.weight": (hidden,),
        prefix + "eh_proj.weight": (hidden, 2 * hidden),
        **_layer(config, layer),
        prefix + "shared_head.norm.weight": (hidden,),
    }


def _layer(config: ModelConfig, layer: int) -> Shapes:
    prefix = f"model.layers.{layer}."
    feed_forward = _mlp("mlp.", config.hidden_size, config.intermediate_size) if config.has_mlp(layer) else {}
    if config.is_moe(layer):
        feed_forward |= _experts(config)
    shapes = {
        "input_layernorm.weight": (config.hidden_size,),
        **_attention(config),
        **(_indexer(config) if config.indexer_type(layer) == FULL else {}),
        "post_attention_layernorm.weight": (config.hidden_size,),
        **feed_forward,
    }
    if config.post_mlp_norm and config.is_moe(layer):
        shapes["post_mlp_layernorm.weight"] = (config.hidden_size,)
    return {prefix + name: shape for name, shape in shapes.items()}


def _attention(config: ModelConfig) -> Shapes:
    hidden, heads, latent = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    queries = heads * config.qk_head_dim
    shapes: Shapes = {}
    if config.q_lora_rank is None:
        shapes["q_proj.weight"] = (queries, hidden)
    else:
        shapes["q_a_proj.weight"] = (config.q_lora_rank, hidden)
        shapes["q_a_layernorm.weight"] = (config.q_lora_rank,)
        shapes["q_b_proj.weight"] = (queries, config.q_lora_rank)
    shapes["kv_a_proj_with_mqa.weight"] = (config.latent_dim, hidden)
    shapes["kv_a_layernorm.weight"] = (latent,)
    shapes["kv_b_proj.weight"] = (heads * (config.qk_nope_head_dim + config.v_head_dim), latent)
    shapes["o_proj.weight"] = (hidden, heads * config.v_head_dim)
    return {f"self_attn.{name}": shape for name, shape in shapes.items()}


def _indexer(config: ModelConfig) -> Shapes:
    heads, width = config.index_n_heads, config.index_head_dim
    shapes: Shapes = {
        "wq_b.weight": (heads * width, config.q_lora_rank or 0),
        "wk.weight": (width, config.hidden_size),
        "k_norm.weight": (width,),
        "k_norm.bias": (width,),
        "weights_proj.weight": (heads, config.hidden_size),
    }
    return {INDEXER + name: shape for name, shape in shapes.items()}


def _experts(config: ModelConfig) -> Shapes:
    hidden, inner, experts = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts
    choices = experts + config.zero_expert_num
    shapes: Shapes = {"mlp.gate.weight": (choices, hidden)}
    if config.score_bias:
        shapes["mlp.gate.e_score_correction_bias"] = (choices,)
    shapes |= {name: (experts, *shape) for name, shape in _mlp("mlp.experts.*.", hidden, inner).items()}
    if config.n_shared_experts:
        shapes |= _mlp("mlp.shared_experts.", hidden, inner * config.n_shared_experts)
    return shapes


def _mlp(prefix: str, hidden: int, inner: int) -> Shapes:
    return {
        f"{prefix}gate_proj.weight": (inner, hidden),
        f"{prefix}up_proj.weight": (inner, hidden),
        f"{prefix}down_proj.weight": (hidden, inner),
    }
