"""The keys of a GGUF file as the config.json that they were made of.

llama.cpp, conversion/deepseek.py and base.py (`set_gguf_parameters`), src/models/deepseek2.cpp (what each key does).
All members of the family share the architecture deepseek2. Those that it does not tell apart compute alike: deepseek_v2
where experts are chosen by softmax, deepseek_v3 all others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from dsv3c.compiler.checkpoint.files import quote
from dsv3c.compiler.checkpoint.gguf.keys import Keys
from dsv3c.compiler.checkpoint.gguf.names import HEAD
from dsv3c.compiler.errors import GgufModelError

Values = dict[str, Any]
ARCHITECTURE = "general.architecture"
_SOFTMAX, _SIGMOID = 1, 2  # enum llama_expert_gating_func_type
_BIAS = ".mlp.gate.e_score_correction_bias"
# Keys that say nothing of the arithmetic, or again what others say.
_NULLABLE = ("q_lora_rank",)  # null says that queries have no latent; what is absent is told by the tensors
_HARMLESS = ("rope.scaling.finetuned", "attention.key_length", "attention.value_length", "vocab_size")


def config_of(file: Keys, names: Collection[str]) -> tuple[Values, tuple[str, ...]]:
    """What config.json had, and sentences about what the file leaves out. `names` are those of its tensors.

    Raises GgufModelError, MissingConfigKeyError, ConfigValueError, UnsupportedConfigError.
    """
    architecture = file.text(ARCHITECTURE)
    if architecture is None or architecture not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise GgufModelError(path=file.path, architecture=quote(architecture), known=known)
    keys = file.under(f"{architecture}.")
    values = _ARCHITECTURES[architecture](keys, names)
    for key in keys.unknown():
        if key not in _HARMLESS:
            raise keys.unsupported(key, "what it does to the model is not known here")
    values |= {"tie_word_embeddings": HEAD not in names, **special_ids(file)}
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


def _deepseek2(keys: Keys, names: Collection[str]) -> Values:
    mtp = keys.integer("nextn_predict_layers") or 0
    heads = keys.required("attention.head_count")
    if keys.integer("attention.head_count_kv") not in (None, 1, heads):
        raise keys.unsupported("attention.head_count_kv", f"it must be 1 or attention.head_count, {heads}")
    rotated = keys.required("rope.dimension_count")
    # Files from before attention was absorbed have the sizes of heads in the keys that hold those of the cache now.
    mla = "_mla" if keys.integer("attention.key_length_mla") is not None else ""
    values = {
        "vocab_size": keys.integer("vocab_size"),
        "hidden_size": keys.required("embedding_length"),
        "intermediate_size": keys.required("feed_forward_length"),
        "num_hidden_layers": keys.required("block_count") - mtp,
        "num_nextn_predict_layers": mtp,
        "num_attention_heads": heads,
        "q_lora_rank": keys.integer("attention.q_lora_rank") or None,
        "kv_lora_rank": keys.required("attention.kv_lora_rank"),
        "qk_nope_head_dim": keys.required(f"attention.key_length{mla}") - rotated,
        "qk_rope_head_dim": rotated,
        "v_head_dim": keys.required(f"attention.value_length{mla}"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": keys.required("context_length"),
        "rope_theta": keys.number("rope.freq_base"),
        "rope_scaling": _rope_scaling(keys),
    }
    return values | _experts(keys, names)


def _experts(keys: Keys, names: Collection[str]) -> Values:
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
    scaling = keys.under(f"{keys.prefix}rope.scaling.")
    kind, factor = scaling.text("type"), scaling.number("factor")
    length = scaling.integer("original_context_length")
    names = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow", "yarn_attn_factor": "attention_factor"}
    shape = {name: scaling.number(key) for key, name in names.items()}
    mscale = round(10 * (scaling.number("yarn_log_multiplier") or 0.0), 6) or None
    if scaling.number("yarn_ext_factor") not in (None, 1.0):
        raise scaling.unsupported("yarn_ext_factor", "known is 1")
    keys.asked.update(f"rope.scaling.{key}" for key in scaling.asked)
    if kind in (None, "none"):
        return None
    values = {"factor": factor, "original_max_position_embeddings": length, "mscale": mscale, "mscale_all_dim": mscale}
    return {"type": kind, **{key: value for key, value in (values | shape).items() if value is not None}}


def _notes(keys: Keys, values: Values) -> tuple[str, ...]:
    """A file of a large DeepSeek model from before llama.cpp had groups looks like this."""
    if not values["n_routed_experts"] or "expert_group_count" in {key.removeprefix(keys.prefix) for key in keys.values}:
        return ()
    return ("the file has no expert_group_count: experts are chosen without groups, as llama.cpp does with it",)


_ARCHITECTURES: Mapping[str, Callable[[Keys, Collection[str]], Values]] = {"deepseek2": _deepseek2}
ARCHITECTURES = tuple(_ARCHITECTURES)
