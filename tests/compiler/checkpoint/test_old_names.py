"""Checkpoints whose tensors have other names than those that are published, or leftovers beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.checkpoint.errors import SameTensorError, StrayScaleError, UnexpectedTensorError
from dsv3c.compiler.errors import CheckpointError
from tests.checkpoints import (
    fuse_experts,
    random_tensors,
    stored_tensors,
    tiny_config,
    write_checkpoint,
    write_safetensors,
)

CONFIG = tiny_config(num_hidden_layers=2)
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def read(folder: Path) -> dict[str, np.ndarray]:
    found = Checkpoint.open(folder)
    return {name: found.read(name) for name in found.shapes}


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"model.{name}",
        lambda name: name.removeprefix("model."),
        lambda name: f"module.{name.removeprefix('model.')}",
    ],
)
@pytest.mark.parametrize("fused", [False, True])
def test_wrappers_and_a_missing_prefix_are_seen_through(
    rename: Callable[[str], str], fused: bool, tmp_path: Path
) -> None:
    tensors = write_checkpoint(tmp_path, CONFIG)
    expected = read(tmp_path)
    stored = fuse_experts(tensors) if fused else tensors
    write_safetensors(tmp_path / "model.safetensors", {rename(name): value for name, value in stored.items()})
    found = read(tmp_path)
    assert found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("model_type", ["kimi_k25", "longcat_flash"])
def test_wrappers_around_names_that_are_others_inside(model_type: str, tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path, tiny_config(model_type))
    expected = read(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", {f"module.{name}": value for name, value in tensors.items()})
    found = read(tmp_path)
    assert found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(
    ("model_type", "prefix", "other"),
    [
        ("kimi_k25", "", "model.norm.weight"),
        ("longcat_flash", "", "model.layers.0.mlp.gate.weight"),
        ("deepseek_v3", "model.", "lm_head.weight"),
    ],
)
def test_two_names_of_a_tensor_are_not_one_of_them(model_type: str, prefix: str, other: str, tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path, tiny_config(model_type))
    named = {f"{prefix}{name}": value for name, value in tensors.items()} | {other: np.ones(3, np.float32)}
    write_safetensors(tmp_path / "model.safetensors", named)
    with pytest.raises(SameTensorError, match=f"'{other}', which are names of the same tensor"):
        read(tmp_path)


def test_a_head_may_be_missing_where_it_is_tied(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path, tiny_config("youtu", num_hidden_layers=2))
    write_safetensors(tmp_path / "model.safetensors", {n.removeprefix("model."): t for n, t in tensors.items()})
    assert "model.embed_tokens.weight" in read(tmp_path)


def test_a_prefix_of_some_tensors_alone_is_no_wrapper(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path, CONFIG)
    write_safetensors(tmp_path / "model.safetensors", tensors | {"module.x": np.ones(1, np.float32)})
    with pytest.raises(UnexpectedTensorError, match=r"module\.x"):
        read(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", {})
    with pytest.raises(CheckpointError):
        read(tmp_path)


@pytest.mark.parametrize("buffer", ["inv_freq", "original_inv_freq", "cos_cached", "sin_cached"])
def test_leftover_buffers_are_passed_over(buffer: str, tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path, CONFIG)
    left = {
        f"{prefix}rotary_emb.{buffer}": np.ones((8, 4), np.float32)
        for prefix in ("model.", "model.layers.1.self_attn.")
    }
    expected = read(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", tensors | left)
    assert read(tmp_path).keys() == expected.keys()


@pytest.mark.parametrize("fused", [False, True])
def test_a_bfloat16_copy_whose_config_still_says_fp8_is_read(fused: bool, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {**CONFIG, "quantization_config": FP8}, dtype="bfloat16")
    expected = read(tmp_path)
    tensors = stored_tensors(random_tensors(CONFIG), "bfloat16", (128, 128))
    write_safetensors(tmp_path / "model.safetensors", fuse_experts(tensors) if fused else tensors)
    found = read(tmp_path)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert Checkpoint.open(tmp_path).coding("model.layers.1.mlp.experts.*.up_proj.weight") is None
    name = "model.layers.0.self_attn.o_proj.weight"
    write_safetensors(tmp_path / "model.safetensors", tensors | {f"{name}_scale_inv": np.ones((1, 1), np.float32)})
    with pytest.raises(StrayScaleError, match=r"is a scale, but .*\n.*leave them out"):
        read(tmp_path)
