"""Tiny GGUF files: of a checkpoint's tensors, as llama.cpp writes them, and byte by byte, as nobody should."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants

PARTS = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "eh_proj.weight": "nextn.eh_proj.weight",
    "enorm.weight": "nextn.enorm.weight",
    "hnorm.weight": "nextn.hnorm.weight",
    "shared_head.norm.weight": "nextn.shared_head_norm.weight",
    **{f"mlp.{part}_proj.weight": f"ffn_{part}.weight" for part in ("gate", "up", "down")},
    **{f"mlp.shared_experts.{part}_proj.weight": f"ffn_{part}_shexp.weight" for part in ("gate", "up", "down")},
}
INDEXER = {
    "self_attn.indexer.wq_b.weight": "indexer.attn_q_b.weight",
    "self_attn.indexer.wk.weight": "indexer.attn_k.weight",
    "self_attn.indexer.k_norm.weight": "indexer.k_norm.weight",
    "self_attn.indexer.k_norm.bias": "indexer.k_norm.bias",
    "self_attn.indexer.weights_proj.weight": "indexer.proj.weight",
}
ARCHITECTURES = {"deepseek_v32": "deepseek32", "glm_moe_dsa": "glm-dsa", "mistral4": "mistral4", "minicpm3": "minicpm3"}
TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.value_length_mla": "v_head_dim",
    "rope.dimension_count": "qk_rope_head_dim",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
    "leading_dense_block_count": "first_k_dense_replace",
    "expert_count": "n_routed_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_shared_count": "n_shared_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "nextn_predict_layers": "num_nextn_predict_layers",
}


def architecture_of(config: Mapping[str, Any]) -> str:
    return ARCHITECTURES.get(config["model_type"], "deepseek2")


def keys_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that llama.cpp's converter writes for a config.json; a key with None is left out."""
    head = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    found = {key: config.get(name) for key, name in KEYS.items()}
    found["block_count"] = config["num_hidden_layers"] + config.get("num_nextn_predict_layers", 0)
    if config["model_type"] == "minicpm3":
        found |= {"attention.key_length": head, "attention.head_count_kv": config["num_attention_heads"]}
        found |= {"attention.value_length_mla": None, "rope.freq_base": None}
    else:
        found |= {"attention.key_length_mla": head, "attention.head_count_kv": 1}
    if config["model_type"] in ("deepseek_v32", "glm_moe_dsa"):
        parts = {"head_count": "index_n_heads", "key_length": "index_head_dim", "top_k": "index_topk"}
        found |= {f"attention.indexer.{key}": config[name] for key, name in parts.items()}
    if config.get("indexer_types"):
        found["attention.indexer.types"] = [kind == "full" for kind in config["indexer_types"]]
    if config.get("scoring_func"):
        found["expert_gating_func"] = {"softmax": 1, "sigmoid": 2}[config["scoring_func"]]
    keys = {f"{architecture_of(config)}.{key}": value for key, value in found.items()}
    keys["tokenizer.ggml.bos_token_id"] = config.get("bos_token_id")
    keys["tokenizer.ggml.eos_token_id"] = config.get("eos_token_id")
    return keys


def gguf_tensors(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A checkpoint's tensors by llama.cpp's names: the experts of a layer in one, Mistral's with gate and up in one;
    kv_b_proj in halves, but MiniCPM's, whose divisors of frequencies are tensors too."""
    found: dict[str, np.ndarray] = {}
    scaling = config.get("rope_scaling") or {}
    for kind in ("long", "short"):
        if f"{kind}_factor" in scaling:
            found[f"rope_factors_{kind}.weight"] = np.array(scaling[f"{kind}_factor"], np.float32)
    for name, value in tensors.items():
        if name in TOP:
            found[TOP[name]] = value
            continue
        _, _, layer, rest = name.split(".", 3)
        if ".experts." in name:
            expert, part, _ = rest.removeprefix("mlp.experts.").split(".")
            if expert == "0":
                count = config["n_routed_experts"]
                all_of = [tensors[name.replace(".experts.0.", f".experts.{number}.")] for number in range(count)]
                found[f"blk.{layer}.ffn_{part.removesuffix('_proj')}_exps.weight"] = np.stack(all_of)
        elif rest == "self_attn.kv_b_proj.weight" and config["model_type"] == "minicpm3":
            found[f"blk.{layer}.attn_kv_b.weight"] = value
        elif rest == "self_attn.kv_b_proj.weight":
            heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
            by_head = value.reshape(heads, -1, value.shape[1])
            found[f"blk.{layer}.attn_k_b.weight"] = by_head[:, :nope].transpose(0, 2, 1).copy()
            found[f"blk.{layer}.attn_v_b.weight"] = by_head[:, nope:].copy()
        else:
            found[f"blk.{layer}.{(PARTS | INDEXER)[rest]}"] = value
    if config["model_type"] == "mistral4":
        for name in [name for name in found if name.endswith("ffn_gate_exps.weight")]:
            halves = [found.pop(name), found.pop(name.replace("gate", "up"))]
            found[name.replace("gate", "gate_up")] = np.concatenate(halves, axis=1)
    return found


def write_gguf(
    path: Path,
    keys: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    kind: str = "F32",
    architecture: str = "deepseek2",
) -> None:
    """Matrices are rounded to `kind`, but not those without whole blocks; a tensor of bytes is written as it is."""
    writer = GGUFWriter(path, architecture)
    for key, value in keys.items():
        _add(writer, key, value)
    number = GGMLQuantizationType[kind]
    for name, value in tensors.items():
        if value.dtype == np.uint8:
            writer.add_tensor(name, value, raw_dtype=number)
        elif value.ndim < 2 or kind == "F32" or (value.shape[-1] % 32 and kind not in ("F16", "BF16")):
            writer.add_tensor(name, value.astype(np.float32))
        else:
            writer.add_tensor(name, quants.quantize(value.astype(np.float32), number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


# --- byte by byte -----------------------------------------------------------------------------------------------------


def text(value: str | bytes, length: int | None = None) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data) if length is None else length) + data


def key(name: str | bytes, kind: int = 4, value: bytes = bytes(4)) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def entry(
    name: str | bytes = "w", dims: Sequence[int] = (32,), kind: int = 0, offset: int = 0, rank: int | None = None
) -> bytes:
    count = len(dims) if rank is None else rank
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


def raw_file(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    *,
    body: int = 0,
    start: bytes = b"GGUF\x03\0\0\0",
    n_keys: int | None = None,
    n_tensors: int | None = None,
) -> bytes:
    """A file of these keys and entries of tensors, padded to 32, with so many bytes of data."""
    counts = (len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys)
    header = start + struct.pack("<QQ", *counts) + b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % 32 if body else 0) + bytes(body)


def finite_blocks(kind: str, rows: int, blocks: int, seed: int = 0) -> np.ndarray:
    """u8 [rows, bytes]: random blocks of a type whose float16 scales are small numbers."""
    offsets = {
        "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
        "IQ4_XS": (0,), "IQ4_NL": (0,), "IQ3_S": (0,), "IQ2_XS": (0,), "Q4_1": (0, 2), "Q5_1": (0, 2),
    }[kind]  # fmt: skip
    size = quants.GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (rows, blocks, size), np.uint8)
    for offset in offsets:
        scale = rng.uniform(-0.05, 0.05, (rows, blocks, 1)).astype(np.float16)
        data[..., offset : offset + 2] = scale.view(np.uint8)
    return data.reshape(rows, -1)
