"""Keys of a config.json that the reader takes no value from: those that are known to change nothing, those that would
change what is computed, and those that nobody here knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsv3c.compiler.checkpoint.fields import ConfigFields
from dsv3c.compiler.checkpoint.files import some
from dsv3c.compiler.checkpoint.members import Member

# What other models have, or one member of the family, each with the values that change nothing.
_ARITHMETIC: Mapping[str, tuple[Any, ...]] = {
    "attention_method": ("MLA",),
    "attention_multiplier": (),
    "attn_logit_softcapping": (),
    "clip_qkv": (),
    "dim_model_base": (),
    "embedding_multiplier": (1, 1.0),
    "final_logit_softcapping": (),
    "hc_mult": (1,),
    "layernorm_type": ("rmsnorm",),
    "logit_scale": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "mla_scale_kv_lora": (False,),
    "mla_scale_q_lora": (False,),
    "mla_use_nope": (False,),
    "mup_denominator": (),
    "num_hash_layers": (0,),
    "qk_layernorm": (False,),
    "qk_norm": (False,),
    "query_pre_attn_scalar": (),
    "residual_multiplier": (1, 1.0),
    "router_bias": (False,),
    "scale_depth": (),
    "scale_emb": (1, 1.0),
    "sliding_window": (),
    "swiglu_limit": (0, 0.0),
    "use_qk_norm": (False,),
    "use_qkv_bias": (False,),
    "zero_expert_num": (0,),
}
_NOTHING = """
_name_or_path add_cross_attention architectures attention_dropout attn_implementation attn_module_list_cfg auto_map
aux_loss_alpha bad_words_ids begin_suppress_tokens chunk_size_feed_forward cross_attention_hidden_size
decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size ep_size
exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id head_dim hidden_act
hidden_dropout id2label initializer_range is_decoder is_encoder_decoder label2id language layer_types
length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
output_attentions output_hidden_states output_router_logits output_scores prefix pretraining_tp problem_type
pruned_heads qk_head_dim remove_invalid_values repetition_penalty return_dict return_dict_in_generate
router_aux_loss_coef sep_token_id seq_aux suppress_tokens task_specific_params temperature tf_legacy_loss
tie_encoder_decoder tokenizer_class top_k top_p topk torch_dtype torchscript transformers_version typical_p
unsloth_fixed unsloth_version use_bfloat16 use_cache use_return_dict
"""
_READ = """
attention_bias bos_token_id compression_config dim_model_base eos_token_id first_k_dense_replace hidden_size
index_head_dim index_n_heads index_skip_topk_offset index_topk index_topk_freq index_topk_pattern
indexer_rope_interleave indexer_types intermediate_size kv_lora_rank max_position_embeddings mla_scale_kv_lora
mla_scale_q_lora mlp_bias mlp_layer_types model_type moe_intermediate_size moe_layer_freq mtp_indexer n_group
n_routed_experts n_shared_experts norm_topk_prob num_attention_heads num_experts_per_tok num_hidden_layers
num_key_value_heads num_layers num_nextn_predict_layers original_max_position_embeddings pad_token_id
partial_rotary_factor q_lora_rank qk_nope_head_dim qk_rope_head_dim quantization_config rms_norm_eps rope_interleave
rope_parameters rope_scaling rope_theta routed_scaling_factor scale_depth scale_emb score_bias scoring_func
tie_word_embeddings topk_group topk_method v_head_dim vocab_size zero_expert_num zero_expert_type
"""


def check_other_keys(config: ConfigFields, member: Member) -> None:
    """Raises UnsupportedConfigError for a key that is not read and whose value changes what is computed."""
    for key, harmless in _ARITHMETIC.items():
        value = config.values.get(key)
        if value is not None and key not in member.keys and value not in harmless:
            raise config.unsupported(key, "it changes what is computed, and this compiler does not have it")


def unknown_keys(values: Mapping[str, Any]) -> tuple[str, ...]:
    """A note of the keys that are neither read nor known."""
    known = {*_ARITHMETIC, *_NOTHING.split(), *_READ.split()}
    unknown = sorted(key for key, value in values.items() if key not in known and value is not None)
    return (f"config.json: not known here, and passed over: {some(unknown)}",) if unknown else ()
