"""LoRA adapters with random weights, written as PEFT writes them, and what they make of a checkpoint, in plain numpy.

Nothing here imports the compiler: it is an independent statement of the format.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints import write_safetensors

PREFIX = "base_model.model."
ATTENTION = tuple(f"self_attn.{part}" for part in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"))

Tensors = dict[str, np.ndarray]


def adapter_config(**changes: Any) -> dict[str, Any]:
    """As PEFT writes it, most keys left out; an override of `...` removes the key."""
    config = {
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "base_model_name_or_path": "someone/tiny",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "bias": "none",
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "lora_bias": False,
        "fan_in_fan_out": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": ["o_proj"],
        "target_parameters": None,
        "modules_to_save": None,
        **changes,
    }
    return {key: value for key, value in config.items() if value is not ...}


def factors(modules: Iterable[str], weights: Mapping[str, np.ndarray], rank: int = 4, seed: int = 1) -> Tensors:
    """lora_A and lora_B of modules, for matrices of a checkpoint."""
    rng, found = np.random.default_rng(seed), Tensors()
    for module in modules:
        rows, columns = weights[f"{module}.weight"].shape
        found[f"{PREFIX}{module}.lora_A.weight"] = rng.standard_normal((rank, columns), np.float32) / 8
        found[f"{PREFIX}{module}.lora_B.weight"] = rng.standard_normal((rows, rank), np.float32) / 8
    return found


def embedding_factors(module: str, weights: Mapping[str, np.ndarray], rank: int = 4, seed: int = 2) -> Tensors:
    """lora_embedding_A and lora_embedding_B."""
    rng, (rows, columns) = np.random.default_rng(seed), weights[f"{module}.weight"].shape
    return {
        f"{PREFIX}{module}.lora_embedding_A": rng.standard_normal((rank, rows), np.float32) / 8,
        f"{PREFIX}{module}.lora_embedding_B": rng.standard_normal((columns, rank), np.float32) / 8,
    }


def write_adapter(folder: Path, tensors: Mapping[str, np.ndarray], **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(adapter_config(**changes)))
    write_safetensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    return folder


def merged(weights: Mapping[str, np.ndarray], adapter: Mapping[str, np.ndarray], scale: float) -> Tensors:
    """W + scale * B @ A in float32, of modules with one scale for all."""
    found = dict(weights)
    for name, a in adapter.items():
        module = name.removeprefix(PREFIX).partition(".lora_")[0]
        if name.endswith(".lora_A.weight"):
            b = adapter[name.replace(".lora_A.", ".lora_B.")]
            found[f"{module}.weight"] = found[f"{module}.weight"] + np.float32(scale) * (b @ a)
        if name.endswith(".lora_embedding_A"):
            b = adapter[name.replace("_A", "_B")]
            found[f"{module}.weight"] = found[f"{module}.weight"] + np.float32(scale) * (a.T @ b.T)
    return found
