"""Tiny checkpoints with random weights, written as Hugging Face repositories are: config.json and model.safetensors.

Nothing here imports the compiler, so that a checkpoint is an independent statement of the format.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

SAFETENSORS_NAMES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3",
    np.dtype(ml_dtypes.float8_e8m0fnu): "F8_E8M0",
    np.dtype(np.uint8): "U8",
    np.dtype(np.int8): "I8",
    np.dtype(np.int32): "I32",
    np.dtype(np.int64): "I64",
}
SCALE_SUFFIX = "_scale_inv"

_COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "attention_bias": False,
}
_EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "routed_scaling_factor": 2.5,
}
_NOAUX: dict[str, Any] = {"n_group": 4, "topk_group": 2, "norm_topk_prob": True, "topk_method": "noaux_tc"}
_INDEXER: dict[str, Any] = {"index_topk": 8, "index_n_heads": 12, "index_head_dim": 16}
_BY_TYPE: dict[str, dict[str, Any]] = {
    "deepseek_v3": {**_EXPERTS, **_NOAUX, "first_k_dense_replace": 1, "scoring_func": "sigmoid"},
    "kimi_k2": {**_EXPERTS, **_NOAUX, "first_k_dense_replace": 1, "scoring_func": "sigmoid"},
    "deepseek_v2": {
        **_EXPERTS,
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": False,
        "topk_method": "greedy",
        "scoring_func": "softmax",
        "first_k_dense_replace": 1,
    },
    "glm4_moe_lite": {**_EXPERTS, **_NOAUX, "mlp_layer_types": ["dense", "sparse", "sparse"], "n_group": 1,
                      "topk_group": 1},
    "youtu": {"tie_word_embeddings": True},
    "youtu_llm": {"tie_word_embeddings": True},
    "deepseek_v32": {**_EXPERTS, **_NOAUX, **_INDEXER, "first_k_dense_replace": 1, "scoring_func": "sigmoid"},
    "glm_moe_dsa": {**_EXPERTS, **_NOAUX, **_INDEXER, "mlp_layer_types": ["dense", "sparse", "sparse"],
                    "index_topk_freq": 2, "rope_interleave": True},
    "mistral4": {**_EXPERTS, "n_group": 4, "topk_group": 2, "norm_topk_prob": True, "first_k_dense_replace": 1},
    "axk1": {**_EXPERTS, **_NOAUX, "first_k_dense_replace": 1},
    "longcat_flash": {
        **{"num_layers": 2, "num_hidden_layers": ..., "intermediate_size": ..., "ffn_hidden_size": 96, "head_dim": 8},
        **{"expert_ffn_hidden_size": 32, "n_routed_experts": 8, "zero_expert_num": 4, "zero_expert_type": "identity"},
        **{"moe_topk": 3, "routed_scaling_factor": 2.5, "mla_scale_q_lora": True, "mla_scale_kv_lora": True},
    },
    "minicpm3": {"tie_word_embeddings": True, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16},
}  # fmt: skip
_WRAPPED = {"kimi_k25": "kimi_k2", "kimi_vl": "deepseek_v3", "mistral3": "mistral4"}
_VISION: dict[str, Any] = {"patch_size": 2, "num_attention_heads": 2, "num_hidden_layers": 1, "hidden_size": 16,
                           "intermediate_size": 16, "pos_emb_height": 4, "pos_emb_width": 4}  # fmt: skip

YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def tiny_config(model_type: str = "deepseek_v3", /, **overrides: Any) -> dict[str, Any]:
    """A valid config.json of a model of a few ten thousand weights; an override of `...` removes the key."""
    if model_type in _WRAPPED:
        text = tiny_config(_WRAPPED[model_type], **overrides)
        outer = {"tie_word_embeddings": text["tie_word_embeddings"], "vision_config": _VISION}
        return {"model_type": model_type, "text_config": text, **outer}
    config = {"model_type": model_type, **_COMMON, **_BY_TYPE[model_type], **overrides}
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    return {key: value for key, value in config.items() if value is not ...}


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the text model, which may lie in that of a multimodal one."""
    text: Mapping[str, Any] = config.get("text_config", config)
    return text


def layer_types(config: Mapping[str, Any]) -> list[str]:
    """ "dense" or "sparse" for every layer that is a single block, the MTP layers last."""
    n_layers = config.get("num_hidden_layers", 0)
    sparse = "sparse" if config.get("n_routed_experts") else "dense"
    first_sparse = config.get("first_k_dense_replace", 1)
    main = config.get("mlp_layer_types") or ["dense" if i < first_sparse else sparse for i in range(n_layers)]
    behind = 0 if "num_layers" in config else config.get("num_nextn_predict_layers", 0)
    return list(main) + [sparse] * behind


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all the tensors of a checkpoint, one tensor an expert. Of vision there is one tensor."""
    if "text_config" in config:
        inner = {f"language_model.{name}": shape for name, shape in tensor_shapes(config["text_config"]).items()}
        return inner | {"vision_tower.nothing.weight": (4,)}
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config.get("num_layers", 0)):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _paired_shapes(config).items()}
    if "num_layers" in config and config.get("num_nextn_predict_layers"):
        shapes |= {f"model.mtp.{name}": shape for name, shape in _paired_mtp_shapes(config).items()}
    for layer, kind in enumerate(layer_types(config)):
        prefix = f"model.layers.{layer}."
        shapes |= {prefix + name: shape for name, shape in _layer_shapes(config, kind == "sparse").items()}
        if _has_indexer(config, layer):
            shapes |= {prefix + name: shape for name, shape in _indexer_shapes(config).items()}
        if layer >= config["num_hidden_layers"]:
            shapes |= {prefix + f"{name}.weight": (hidden,) for name in ("enorm", "hnorm", "shared_head.norm")}
            shapes[prefix + "eh_proj.weight"] = (hidden, 2 * hidden)
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def _layer_shapes(config: Mapping[str, Any], sparse: bool) -> dict[str, tuple[int, ...]]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nope, rope, v_dim = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    q_rank, kv_rank = config.get("q_lora_rank"), config["kv_lora_rank"]
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.kv_a_proj_with_mqa.weight": (kv_rank + rope, hidden),
        "self_attn.kv_a_layernorm.weight": (kv_rank,),
        "self_attn.kv_b_proj.weight": (heads * (nope + v_dim), kv_rank),
        "self_attn.o_proj.weight": (hidden, heads * v_dim),
    }
    if q_rank is None:
        shapes["self_attn.q_proj.weight"] = (heads * (nope + rope), hidden)
    else:
        shapes["self_attn.q_a_proj.weight"] = (q_rank, hidden)
        shapes["self_attn.q_a_layernorm.weight"] = (q_rank,)
        shapes["self_attn.q_b_proj.weight"] = (heads * (nope + rope), q_rank)
    if config["model_type"] == "axk1":
        shapes["post_mlp_layernorm.weight"] = (hidden,)
    if not sparse:
        return shapes | _mlp_shapes("mlp", hidden, config["intermediate_size"])
    inner, n_experts = config["moe_intermediate_size"], config["n_routed_experts"]
    shapes["mlp.gate.weight"] = (n_experts, hidden)
    if config["model_type"] not in ("deepseek_v2", "mistral4"):
        shapes["mlp.gate.e_score_correction_bias"] = (n_experts,)
    for expert in range(n_experts):
        shapes |= _mlp_shapes(f"mlp.experts.{expert}", hidden, inner)
    if config.get("n_shared_experts"):
        shapes |= _mlp_shapes("mlp.shared_experts", hidden, inner * config["n_shared_experts"])
    return shapes


def _has_indexer(config: Mapping[str, Any], layer: int) -> bool:
    """All layers of DeepSeek-V3.2; of GLM those that its config names, or the first two and then each
    `index_topk_freq`-th; and those of MTP."""
    if not config.get("index_topk") or layer >= config["num_hidden_layers"]:
        return bool(config.get("index_topk"))
    if "indexer_types" in config:
        return bool(config["indexer_types"][layer] == "full")
    return max(layer - 1, 0) % config.get("index_topk_freq", 1) == 0


def _paired_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Two blocks of attention and MLP, and experts beside them."""
    hidden, inner, choices = config["hidden_size"], config["expert_ffn_hidden_size"], config["n_routed_experts"]
    single = _layer_shapes({**config, "intermediate_size": config["ffn_hidden_size"]}, sparse=False)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in single.items():
        part, _, rest = name.replace("mlp.", "mlps.").partition(".")
        shapes |= {f"{part}.{block}.{rest}": shape for block in (0, 1)}
    choices += config["zero_expert_num"]
    shapes |= {"mlp.router.classifier.weight": (choices, hidden), "mlp.router.e_score_correction_bias": (choices,)}
    for expert in range(config["n_routed_experts"]):
        shapes |= _mlp_shapes(f"mlp.experts.{expert}", hidden, inner)
    return shapes


def _paired_mtp_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """One block of attention and MLP, with an embedding and a norm of its own."""
    hidden = config["hidden_size"]
    block = _layer_shapes({**config, "intermediate_size": config["ffn_hidden_size"]}, sparse=False)
    block = {f"transformer_layer.{name}" if name.startswith("mlp.") else name: shape for name, shape in block.items()}
    block |= {"enorm.m.weight": (hidden,), "hnorm.m.weight": (hidden,), "eh_proj.weight": (hidden, 2 * hidden)}
    shapes: dict[str, tuple[int, ...]] = {f"layers.0.{name}": shape for name, shape in block.items()}
    return shapes | {"embed_tokens.weight": (config["vocab_size"], hidden), "norm.weight": (hidden,)}


def _indexer_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, heads, width = config["hidden_size"], config["index_n_heads"], config["index_head_dim"]
    return {
        "self_attn.indexer.wq_b.weight": (heads * width, config["q_lora_rank"]),
        "self_attn.indexer.wk.weight": (width, hidden),
        "self_attn.indexer.k_norm.weight": (width,),
        "self_attn.indexer.k_norm.bias": (width,),
        "self_attn.indexer.weights_proj.weight": (heads, hidden),
    }


def _mlp_shapes(prefix: str, hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.gate_proj.weight": (inner, hidden),
        f"{prefix}.up_proj.weight": (inner, hidden),
        f"{prefix}.down_proj.weight": (hidden, inner),
    }


def random_tensors(config: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of a size that keeps activations near 1: float32, matrices ~ N(0, 1/fan_in), norms near 1."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in tensor_shapes(config).items():
        value = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("bias"):
            tensors[name] = value * np.float32(0.1)
        elif len(shape) == 1:
            tensors[name] = np.float32(1) + value * np.float32(0.1)
        elif name.endswith("embed_tokens.weight"):
            tensors[name] = value
        else:
            tensors[name] = value / np.float32(np.sqrt(shape[1]))
    return tensors


def quantize_fp8(weight: np.ndarray, block: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """float8_e4m3 codes of `weight` [N, K] and float32 scales [ceil(N/b0), ceil(K/b1)]; value = code * scale."""
    rows, columns = weight.shape
    scale = np.zeros((-(-rows // block[0]), -(-columns // block[1])), np.float32)
    codes = np.zeros(weight.shape, ml_dtypes.float8_e4m3fn)
    for i, j in np.ndindex(scale.shape):
        part = np.s_[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
        scale[i, j] = max(float(np.abs(weight[part]).max()) / 448, 1e-12)
        codes[part] = (weight[part] / scale[i, j]).astype(ml_dtypes.float8_e4m3fn)
    return codes, scale


def stored_tensors(tensors: Mapping[str, np.ndarray], dtype: str, block: tuple[int, int]) -> dict[str, np.ndarray]:
    """The tensors as a file holds them: `dtype` is float32, float16, bfloat16 or float8_e4m3.

    float8_e4m3 is DeepSeek's layout: projections in fp8 with scales, the rest in bfloat16, the bias float32.
    """
    stored: dict[str, np.ndarray] = {}
    plain = np.dtype(ml_dtypes.bfloat16 if dtype in ("bfloat16", "float8_e4m3") else dtype)
    for name, value in tensors.items():
        if dtype == "float8_e4m3" and "_proj" in name and "eh_proj" not in name:
            stored[name], stored[name + SCALE_SUFFIX] = quantize_fp8(value, block)
        elif name.endswith("e_score_correction_bias"):
            stored[name] = value
        else:
            stored[name] = value.astype(plain)
    return stored


def fuse_experts(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights with `experts.gate_up_proj` [E, 2I, D] and `experts.down_proj` [E, D, I] a layer."""
    fused = {name: value for name, value in tensors.items() if ".mlp.experts." not in name}
    for prefix in sorted({name.split(".experts.")[0] for name in tensors if ".mlp.experts." in name}):
        count = sum(name.startswith(f"{prefix}.experts.") and name.endswith(".up_proj.weight") for name in tensors)
        parts = {
            part: [tensors[f"{prefix}.experts.{i}.{part}_proj.weight"] for i in range(count)]
            for part in ("gate", "up", "down")
        }
        fused[f"{prefix}.experts.gate_up_proj"] = np.concatenate([np.stack(parts["gate"]), np.stack(parts["up"])], 1)
        fused[f"{prefix}.experts.down_proj"] = np.stack(parts["down"])
    return fused


def safetensors_bytes(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata is not None else {}
    offset = 0
    for name, value in tensors.items():
        header[name] = {
            "dtype": SAFETENSORS_NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [offset, offset + value.nbytes],
        }
        offset += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(value.tobytes() for value in tensors.values())


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    path.write_bytes(safetensors_bytes(tensors, metadata))


def write_sharded(folder: Path, shards: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """One file a shard, and model.safetensors.index.json over them."""
    for file_name, tensors in shards.items():
        write_safetensors(folder / file_name, tensors)
    index = {
        "metadata": {"total_size": sum(value.nbytes for shard in shards.values() for value in shard.values())},
        "weight_map": {name: file_name for file_name, tensors in shards.items() for name in tensors},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], seed: int = 0, dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Write config.json and model.safetensors with random weights; returns the tensors as they are stored."""
    folder.mkdir(parents=True, exist_ok=True)
    config = dict(config)
    block = (128, 128)
    if dtype == "float8_e4m3":
        quantization = config.setdefault(
            "quantization_config",
            {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(block)},
        )
        block = (quantization["weight_block_size"][0], quantization["weight_block_size"][1])
    stored = stored_tensors(random_tensors(config, seed), dtype, block)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_safetensors(folder / "model.safetensors", stored, {"format": "pt"})
    return stored


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write a tokenizer.json of `vocab_size` ids: one for the beginning, one for the end, then one a character."""
    special = ("<b>", "<e>")
    characters = [chr(32 + i) for i in range(vocab_size - len(special))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": name, **flags} for i, name in enumerate(special)],
        "model": {"type": "BPE", "vocab": {name: i for i, name in enumerate((*special, *characters))}, "merges": []},
        "decoder": {"type": "Fuse"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
