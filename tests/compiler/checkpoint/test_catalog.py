from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from dsv3c.compiler.checkpoint.catalog import LogicalTensor, catalogue
from dsv3c.compiler.checkpoint.config import ModelConfig
from dsv3c.compiler.checkpoint.errors import (
    MissingScaleError,
    MissingTensorError,
    StrayScaleError,
    TensorDtypeError,
    TensorShapeError,
    UnexpectedTensorError,
)
from dsv3c.compiler.checkpoint.shards import open_tensors
from dsv3c.compiler.errors import CheckpointError
from tests.checkpoints import (
    SAFETENSORS_NAMES,
    fuse_experts,
    random_tensors,
    stored_tensors,
    tiny_config,
    write_safetensors,
)

Tensors = dict[str, np.ndarray]
FP8 = {"quant_method": "fp8", "weight_block_size": [16, 24]}
VALUES = tiny_config(num_nextn_predict_layers=1, quantization_config=FP8)
CONFIG = ModelConfig.from_dict(VALUES, Path("config.json"))
ATTENTION, EXPERTS = "model.layers.0.self_attn.", "model.layers.2.mlp.experts."


def entries_of(folder: Path, tensors: Tensors, config: ModelConfig = CONFIG) -> dict[str, LogicalTensor]:
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors)
    return catalogue(config, open_tensors(folder)[0], folder)


def fp8_tensors() -> Tensors:
    return stored_tensors(random_tensors(VALUES), "float8_e4m3", (16, 24))


def remove(*names: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in names:
            del tensors[name]

    return change


def reshape(name: str, shape: tuple[int, ...]) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: np.zeros(shape, tensors[name].dtype)})


def add(name: str, value: np.ndarray) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: value})


def remove_layer(number: int, keep: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith(f"model.layers.{number}.") and keep not in name]:
            del tensors[name]

    return change


BAD: dict[str, tuple[Callable[[Tensors], None], type[CheckpointError], str]] = {
    "embedding missing": (remove("model.embed_tokens.weight"), MissingTensorError, "'model.embed_tokens.weight'"),
    "head missing": (remove("lm_head.weight"), MissingTensorError, "at least 1: 'lm_head.weight'"),
    "norm missing": (remove("model.norm.weight"), MissingTensorError, "model.norm.weight"),
    "router bias missing": (
        remove("model.layers.1.mlp.gate.e_score_correction_bias"), MissingTensorError, "e_score_correction_bias"
    ),
    "an expert missing": (
        remove(f"{EXPERTS}5.up_proj.weight", f"{EXPERTS}5.up_proj.weight_scale_inv"),
        MissingTensorError, r"experts\.5\.up_proj",
    ),
    "a layer missing": (remove_layer(1, "none"), MissingTensorError, r"at least 1\d: 'model\.layers\.1.*…"),
    "MTP in part": (remove_layer(3, "norm"), MissingTensorError, r"model\.layers\.3\.eh_proj"),
    "MTP without its projection": (remove("model.layers.3.eh_proj.weight"), MissingTensorError, "eh_proj"),
    "one expert too many": (
        add(f"{EXPERTS}8.up_proj.weight", np.zeros((32, 64), np.float32)), UnexpectedTensorError, r"experts\.8"
    ),
    "expert with a leading zero": (
        add(f"{EXPERTS}01.up_proj.weight", np.zeros((32, 64), np.float32)), UnexpectedTensorError, r"experts\.01"
    ),
    "a layer too many": (
        add("model.layers.4.input_layernorm.weight", np.zeros(64, np.float32)), UnexpectedTensorError, "layers.4"
    ),
    "a bias": (add(f"{ATTENTION}q_a_proj.bias", np.zeros(48, np.float32)), UnexpectedTensorError, "has 1 tensors"),
    "an unprintable name": (add("\x1b[31m", np.zeros(1, np.float32)), UnexpectedTensorError, re.escape(r"'\x1b[31m'")),
    "vocabulary differs": (
        reshape("model.embed_tokens.weight", (95, 64)), TensorShapeError, r"\[95, 64\], expected \[96, 64\]"
    ),
    "transposed": (reshape(f"{ATTENTION}kv_b_proj.weight", (32, 128)), TensorShapeError, r"kv_b_proj.weight'"),
    "flat": (reshape("model.layers.1.mlp.gate.weight", (512,)), TensorShapeError, r"\[512\], expected \[8, 64\]"),
    "no elements": (reshape("model.norm.weight", (0,)), TensorShapeError, r"shape \[0\]"),
    "expert misshaped": (reshape(f"{EXPERTS}7.down_proj.weight", (64, 31)), TensorShapeError, r"experts\.7\.down"),
    "own MTP table misshaped": (
        add("model.layers.3.embed_tokens.weight", np.zeros((95, 64), np.float32)), TensorShapeError, "layers.3.embed"
    ),
    "fp8 without scale": (
        remove(f"{EXPERTS}0.gate_proj.weight_scale_inv"), MissingScaleError, "there is no .*weight_scale_inv"
    ),
    "scale without fp8": (
        add(f"{ATTENTION}o_proj.weight", np.zeros((64, 64), np.float32)), StrayScaleError, "is stored as F32"
    ),
    "scale of a norm": (
        add("model.norm.weight_scale_inv", np.ones((1, 1), np.float32)), StrayScaleError, "'model.norm.weight_scale"
    ),
    "scale of nothing": (add("x.weight_scale_inv", np.ones((1, 1), np.float32)), UnexpectedTensorError, "x.weight"),
    "scale rounded down": (
        reshape(f"{ATTENTION}o_proj.weight_scale_inv", (4, 2)), TensorShapeError, r"\[4, 2\], expected \[4, 3\]"
    ),
    "scale flat": (reshape(f"{ATTENTION}o_proj.weight_scale_inv", (12,)), TensorShapeError, r"\[12\]"),
    "scale in fp8": (
        add(f"{ATTENTION}o_proj.weight_scale_inv", np.ones((4, 3), ml_dtypes.float8_e4m3fn)),
        TensorDtypeError, "stored as F8_E4M3, expected F32 or F16 or BF16",
    ),
    "norm in fp8": (
        lambda tensors: tensors.update({
            "model.norm.weight": np.ones(64, ml_dtypes.float8_e4m3fn),
            "model.norm.weight_scale_inv": np.ones(3, np.float32),
        }),
        TensorDtypeError, "model.norm.weight",
    ),
    "fused and single experts": (
        add(f"{EXPERTS}down_proj", np.zeros((8, 64, 32), np.float32)), UnexpectedTensorError, r"down_proj"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_the_config_does_not_ask_for_is_refused(case: str, tmp_path: Path) -> None:
    spoil, error, reason = BAD[case]
    tensors = fp8_tensors()
    spoil(tensors)
    with pytest.raises(error, match=reason) as caught:
        entries_of(tmp_path, tensors)
    assert str(tmp_path) in str(caught.value)


def test_integers_are_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAFETENSORS_NAMES, np.dtype(np.int32), "I32")
    tensors = fp8_tensors() | {"model.norm.weight": np.ones(64, np.int32)}
    with pytest.raises(TensorDtypeError, match="is stored as I32, expected F32"):
        entries_of(tmp_path, tensors)


def test_fp8_needs_a_quantization_config(tmp_path: Path) -> None:
    config = ModelConfig.from_dict(tiny_config(num_nextn_predict_layers=1), Path("config.json"))
    with pytest.raises(MissingScaleError, match=r"config\.json has no quantization_config"):
        entries_of(tmp_path, fp8_tensors(), config)


@pytest.mark.parametrize("dtype", ["float32", "float8_e4m3"])
def test_fused_and_single_experts_are_the_same_tensors(dtype: str, tmp_path: Path) -> None:
    # Blocks of 16 rows divide the 32 gate rows, so that the codes of the two forms are the same.
    single = stored_tensors(random_tensors(VALUES), dtype, (16, 24))
    fused = fuse_experts({name: value for name, value in single.items() if not name.endswith("_scale_inv")})
    if dtype == "float8_e4m3":
        scales = {name.removesuffix("_scale_inv"): value for name, value in single.items() if "_scale_inv" in name}
        for name, value in fuse_experts(scales).items():
            fused[name + "_scale_inv"] = value
    assert f"{EXPERTS}gate_up_proj" in fused and f"{EXPERTS}0.up_proj.weight" not in fused
    expected, found = entries_of(tmp_path / "single", single), entries_of(tmp_path / "fused", fused)
    assert list(expected) == list(found)
    for name, entry in expected.items():
        assert entry.shape == found[name].shape
        for a, b in zip(entry.parts, found[name].parts, strict=True):
            np.testing.assert_array_equal(a.decode(), b.decode())


@pytest.mark.parametrize("name", ["gate_up_proj", "down_proj"])
def test_fused_experts_are_checked_too(name: str, tmp_path: Path) -> None:
    fused = fuse_experts(random_tensors(VALUES))
    entries_of(tmp_path, fused)
    whole = fused.pop(EXPERTS + name)
    with pytest.raises(MissingTensorError, match=r"experts\.0\."):
        entries_of(tmp_path, fused)
    for shape in (whole.shape[1:], (9, *whole.shape[1:]), (*whole.shape[:2], 5)):
        with pytest.raises(TensorShapeError, match=name):
            entries_of(tmp_path, {**fused, EXPERTS + name: np.zeros(shape, np.float32)})


def test_stacked_names_and_optional_tables(tmp_path: Path) -> None:
    table = np.ones((96, 64), np.float32)
    own = {"model.layers.3.embed_tokens.weight": table, "model.layers.3.shared_head.head.weight": table}
    entries = entries_of(tmp_path, {**random_tensors(VALUES), **own})
    up = entries[f"{EXPERTS}*.up_proj.weight"]
    assert (up.shape, len(up.parts), up.stacked) == ((8, 32, 64), 8, True)
    assert all(entries[name].shape == (96, 64) for name in own)


def test_buffers_of_old_checkpoints_are_ignored(tmp_path: Path) -> None:
    name = f"{ATTENTION}rotary_emb.inv_freq"
    assert name not in entries_of(tmp_path, {**random_tensors(VALUES), name: np.ones(4, np.float32)})


def test_a_config_that_claims_millions_of_experts_costs_nothing(tmp_path: Path) -> None:
    huge = tiny_config(num_hidden_layers=4096, n_routed_experts=16384, n_group=1, topk_group=1)
    with pytest.raises(TensorShapeError):
        entries_of(tmp_path, random_tensors(VALUES), ModelConfig.from_dict(huge, Path("config.json")))
    with pytest.raises(MissingTensorError, match="at least"):
        entries_of(tmp_path, {}, ModelConfig.from_dict(huge, Path("config.json")))
