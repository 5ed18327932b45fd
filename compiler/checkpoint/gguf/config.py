"""The keys of a GGUF file as the config.json that they were made of.

llama.cpp, conversion/base.py, deepseek.py, glm.py, minicpm.py, mistral3.py (`set_gguf_parameters`); what each key does:
src/models, a file an architecture. Most members share deepseek2. Those that it does not tell apart compute alike:
deepseek_v2 where experts are chosen by softmax, deepseek_v3 all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from dsv3c.compiler.checkpoint.errors import GgufModelError
from dsv3c.compiler.checkpoint.files import quote
from dsv3c.compiler.checkpoint.gguf.keys import Keys
from dsv3c.compiler.checkpoint.gguf.names import HEAD, LONG_FACTORS, SHORT_FACTORS
from dsv3c.compiler.checkpoint.quantised.weight import tensor_of
from dsv3c.compiler.checkpoint.stored import StoredTensor

Values = dict[str, Any]
Stored = Mapping[str, StoredTensor]
ARCHITECTURE = "general.architecture"
_SOFTMAX, _SIGMOID = 1, 2  # enum llama_expert_gating_func_type
_BIAS = ".mlp.gate.e_score_correction_bias"
_NULLABLE = ("q_lora_rank",)  # null says that queries have no latent; what is absent is told by the tensors
# Keys that say nothing of the arithmetic, or again what others say.
_HARMLESS = ("rope.scaling.finetuned", "attention.key_length", "attention.value_length", "vocab_size")
# From this context on a GLM model has indexers that reuse what an earlier layer chose, whether its file says so or not.
_GLM_SHARING_CONTEXT = 1 << 20
_MISTRAL4_BETA = 0.1


def config_of(file: Keys, stored: Stored) -> tuple[Values, tuple[str, ...]]:
    """What config.json had, and sentences about what the file leaves out. `stored` are its tensors.

    Raises GgufModelError, MissingConfigKeyError, ConfigValueError, UnsupportedConfigError, and a CheckpointError for
    a tensor that holds a part of the config.
    """
    architecture = file.text(ARCHITECTURE)
    if architecture is None or architecture not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise GgufModelError(path=file.path, architecture=quote(architecture), known=known)
    keys = file.under(f"{architecture}.")
    values = _ARCHITECTURES[architecture](keys, stored)
    for key in keys.unknown():
        if key not in _HARMLESS:
            raise keys.unsupported(key, "what it does to the model is not known here")
    values |= {"tie_word_embeddings": HEAD not in stored, **special_ids(file)}
    given = {key: value for key, value in values.items() if value is not None or key in _NULLABLE}
    return given, _notes(keys, values)


def special_ids(file: Keys) -> Values:
    """As config.json has them, None for those that the file does not have."""
    keys = file.under("tokenizer.ggml.")
    ends = [keys.integer(f"{role}_token_id") for role in ("eos", "eot", "eom")]
    return {
        "bos_token_id": keys.integer("bos_token_id"),
        "eos_token_id": list(dict.fromkeys(number for number in ends if number is not None)),
        "pad_token_id": keys.integer("padding_token_id"),
    }


def _sizes(keys: Keys) -> Values:
    """What all architectures have."""
    return {
        "vocab_size": keys.integer("vocab_size"),
        "hidden_size": keys.required("embedding_length"),
        "intermediate_size": keys.required("feed_forward_length"),
        "num_hidden_layers": keys.required("block_count"),
        "num_attention_heads": keys.required("attention.head_count"),
        "q_lora_rank": keys.integer("attention.q_lora_rank") or None,
        "kv_lora_rank": keys.required("attention.kv_lora_rank"),
        "qk_rope_head_dim": keys.required("rope.dimension_count"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": keys.required("context_length"),
        "rope_theta": keys.number("rope.freq_base"),
    }


def _deepseek2(keys: Keys, stored: Stored) -> Values:
    sizes = _sizes(keys)
    mtp, heads = keys.integer("nextn_predict_layers") or 0, sizes["num_attention_heads"]
    if keys.integer("attention.head_count_kv") not in (None, 1, heads):
        raise keys.unsupported("attention.head_count_kv", f"it must be 1 or attention.head_count, {heads}")
    # Files from before attention was absorbed have the sizes of heads in the keys that hold those of the cache now.
    mla = "_mla" if keys.integer("attention.key_length_mla") is not None else ""
    values = {
        "num_hidden_layers": sizes["num_hidden_layers"] - mtp,
        "num_nextn_predict_layers": mtp,
        "qk_nope_head_dim": keys.required(f"attention.key_length{mla}") - sizes["qk_rope_head_dim"],
        "v_head_dim": keys.required(f"attention.value_length{mla}"),
        "rope_scaling": _rope_scaling(keys),
    }
    return sizes | values | _experts(keys, stored)


def _deepseek32(keys: Keys, stored: Stored) -> Values:
    return _deepseek2(keys, stored) | _indexer(keys) | {"model_type": "deepseek_v32"}


def _glm_dsa(keys: Keys, stored: Stored) -> Values:
    values, types = _deepseek2(keys, stored), keys.numbers("attention.indexer.types")
    if types is None and values["max_position_embeddings"] >= _GLM_SHARING_CONTEXT:
        layers = min(values["num_hidden_layers"], len(stored))  # each has tensors: more are only claimed
        types = np.array([layer < 2 or layer % 4 == 2 for layer in range(layers)])
    names = None if types is None else ["full" if whole else "shared" for whole in types]
    return values | _indexer(keys) | {"model_type": "glm_moe_dsa", "indexer_types": names}


def _indexer(keys: Keys) -> Values:
    keys = keys.within("attention.indexer.")
    return {
        "index_n_heads": keys.required("head_count"),
        "index_head_dim": keys.required("key_length"),
        "index_topk": keys.required("top_k"),
    }


def _mistral4(keys: Keys, stored: Stored) -> Values:
    """The converter leaves out by how much queries grow with their position, which is the same in all published
    models: it is nothing before original_max_position_embeddings."""
    values = _deepseek2(keys, stored) | {"model_type": "mistral4", "topk_method": None}
    scaling = values.pop("rope_scaling")
    if scaling is not None:
        scaling = {"llama_4_scaling_beta": _MISTRAL4_BETA, **scaling}
    return values | {"rope_parameters": {"rope_type": "default"} if scaling is None else scaling}


def _minicpm3(keys: Keys, stored: Stored) -> Values:
    """What embedding, residuals and head are multiplied by stands in no key: llama.cpp has the published numbers in its
    code, as the member of the family has them here."""
    sizes = _sizes(keys)
    heads, context = sizes["num_attention_heads"], sizes["max_position_embeddings"]
    if keys.integer("attention.head_count_kv") not in (None, heads):
        raise keys.unsupported("attention.head_count_kv", f"it must be attention.head_count, {heads}")
    pairs, names = sizes["qk_rope_head_dim"] // 2, {"short_factor": SHORT_FACTORS, "long_factor": LONG_FACTORS}
    factors = {key: _factors(name, stored, pairs) for key, name in names.items()}
    scaling = {"type": "longrope", "original_max_position_embeddings": context, **factors}
    values = {
        "model_type": "minicpm3",
        "qk_nope_head_dim": keys.required("attention.key_length") - sizes["qk_rope_head_dim"],
        "v_head_dim": keys.integer("attention.value_length") or sizes["hidden_size"] // max(heads, 1),
        "rope_scaling": scaling if any(factors.values()) else None,
    }
    return sizes | values


def _factors(name: str, stored: Stored, count: int) -> list[float] | None:
    """The shortest decimal numbers that are rounded to those of the tensor."""
    tensor = tensor_of(stored, name, [(count,)], ("F32",))
    return None if tensor is None else [float(str(value)) for value in tensor.array()]


def _experts(keys: Keys, names: Iterable[str]) -> Values:
    gating = keys.integer("expert_gating_func") or (_SIGMOID if any(map(_is_bias, names)) else _SOFTMAX)
    if gating not in (_SOFTMAX, _SIGMOID):
        raise keys.unsupported("expert_gating_func", f"known are {_SOFTMAX} and {_SIGMOID}")
    groups = keys.integer("expert_group_count") or 1
    found = {
        "n_routed_experts": keys.integer("expert_count") or 0,
        "first_k_dense_replace": keys.integer("leading_dense_block_count") or 0,
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        "n_shared_experts": keys.integer("expert_shared_count") or 0,
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "n_group": groups,
        "topk_group": keys.integer("expert_group_used_count") or 1,
        "norm_topk_prob": keys.boolean("expert_weights_norm") or False,
        "routed_scaling_factor": keys.number("expert_weights_scale") or 1.0,
    }
    if not found["n_routed_experts"]:
        return {"model_type": "deepseek_v3", "n_routed_experts": 0}
    if gating == _SIGMOID:
        return found | {"model_type": "deepseek_v3", "scoring_func": "sigmoid", "topk_method": "noaux_tc"}
    method = "group_limited_greedy" if groups > 1 else "greedy"
    return found | {"model_type": "deepseek_v2", "scoring_func": "softmax", "topk_method": method}


def _is_bias(name: str) -> bool:
    return name.endswith(_BIAS)


def _rope_scaling(keys: Keys) -> Values | None:
    """None for no scaling. Of YaRN the file has mscale_all_dim alone, by 0.1, and llama.cpp takes mscale to be the
    same, as it is in every published model."""
    scaling = keys.within("rope.scaling.")
    kind, factor = scaling.text("type"), scaling.number("factor")
    length = scaling.integer("original_context_length")
    names = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow", "yarn_attn_factor": "attention_factor"}
    shape = {name: scaling.number(key) for key, name in names.items()}
    mscale = round(10 * (scaling.number("yarn_log_multiplier") or 0.0), 6) or None
    if scaling.number("yarn_ext_factor") not in (None, 1.0):
        raise scaling.unsupported("yarn_ext_factor", "known is 1")
    if kind in (None, "none"):
        return None
    beta = keys.number("attention.temperature_scale")
    if beta is not None and keys.integer("attention.temperature_length") not in (None, length):
        raise keys.unsupported("attention.temperature_length", "it must be rope.scaling.original_context_length")
    values = {"factor": factor, "original_max_position_embeddings": length, "mscale": mscale, "mscale_all_dim": mscale}
    values |= {"llama_4_scaling_beta": beta}
    return {"type": kind, **{key: value for key, value in (values | shape).items() if value is not None}}


def _notes(keys: Keys, values: Values) -> tuple[str, ...]:
    notes, scaling = [], values.get("rope_parameters") or {}
    # A file of a large DeepSeek model from before llama.cpp had groups looks like this.
    if values.get("n_routed_experts") and keys.prefix + "expert_group_count" not in keys.values:
        notes.append("the file has no expert_group_count: experts are chosen without groups, as llama.cpp does with it")
    if "llama_4_scaling_beta" in scaling and keys.prefix + "attention.temperature_scale" not in keys.values:
        notes.append(
            "the file has no attention.temperature_scale: queries beyond original_context_length are scaled by"
            f" {_MISTRAL4_BETA}, as in the published models"
        )
    return tuple(notes)


_ARCHITECTURES: Mapping[str, Callable[[Keys, Stored], Values]] = {
    "deepseek2": _deepseek2,
    "deepseek32": _deepseek32,
    "glm-dsa": _glm_dsa,
    "mistral4": _mistral4,
    "minicpm3": _minicpm3,
}
ARCHITECTURES = tuple(_ARCHITECTURES)
