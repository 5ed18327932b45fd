"""fp8 with one scale a tensor, decoded as torch and transformers decode it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: make conformance")
pytest.importorskip("transformers", reason="transformers is not installed: make conformance")

import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from dsv3c.compiler.checkpoint import Checkpoint
from tests.checkpoints import fuse_experts, random_tensors, tiny_config, write_safetensors

EXPERTS = "model.layers.1.mlp.experts."


def dequantised(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """What transformers makes of them where there is no kernel for fp8."""
    as_torch = torch.from_numpy(codes.view(np.uint8).copy()).view(torch.float8_e4m3fn)
    found: Any = Fp8Dequantize(None)._dequantize_one(as_torch, torch.from_numpy(scale.copy()))
    return np.asarray(found.numpy())


def test_one_scale_a_tensor(tmp_path: Path) -> None:
    quantization = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    config = tiny_config("mistral4", num_hidden_layers=2, quantization_config=quantization)
    random, tensors, expected = np.random.default_rng(0), {}, {}
    for name, value in fuse_experts(random_tensors(config)).items():
        tensors[name] = expected[name] = value
        if "_proj" in name:
            shape = (8, 2, 1) if "gate_up" in name else (8, 1, 1) if value.ndim == 3 else ()
            codes = random.integers(0, 256, value.shape, np.uint8).view(ml_dtypes.float8_e4m3fn)
            codes = np.where(np.isnan(codes.astype(np.float32)), np.ones_like(codes), codes)
            scale = np.asarray(random.uniform(1e-3, 2, shape), np.float32)
            tensors[name], tensors[f"{name}_scale_inv"] = codes, scale
            expected[name] = dequantised(codes, scale)
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_safetensors(tmp_path / "model.safetensors", tensors)
    opened = Checkpoint.open(tmp_path)
    for name in opened.shapes:
        found = opened.read(name)
        if "*" not in name:
            np.testing.assert_array_equal(found, expected[name], err_msg=name)
    gate_up, down = expected[f"{EXPERTS}gate_up_proj"], expected[f"{EXPERTS}down_proj"]
    np.testing.assert_array_equal(opened.read(f"{EXPERTS}*.gate_proj.weight"), gate_up[:, :32])
    np.testing.assert_array_equal(opened.read(f"{EXPERTS}*.up_proj.weight"), gate_up[:, 32:])
    np.testing.assert_array_equal(opened.read(f"{EXPERTS}*.down_proj.weight"), down)
