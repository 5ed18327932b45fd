"""Checkpoints in fp8 with one scale a tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.checkpoint.errors import (
    LeftOutError,
    MissingScaleError,
    ScaleValueError,
    StrayScaleError,
    TensorDtypeError,
    TensorShapeError,
    UnexpectedTensorError,
)
from dsv3c.compiler.errors import CheckpointError
from tests import quantised
from tests.checkpoints import fuse_experts
from tests.quantised import Written

FP8: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
EXPERTS = "model.layers.1.mlp.experts."
O_PROJ = "model.layers.0.self_attn.o_proj"
# The shapes of the scales of a linear, of gate and up, and of down, with 8 experts.
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "as transformers makes them": ((), (8, 2, 1), (8, 1, 1)),
    "as published": ((), (8, 1, 1), (8, 1, 1)),
    "flat": ((1,), (8,), (8,)),
    "of two dimensions": ((1, 1), (8, 1, 1), (8,)),
}


def made(shapes: tuple[tuple[int, ...], ...] = SHAPES["as transformers makes them"], **more: Any) -> Written:
    """One sparse layer after a dense one, experts fused; scales in bfloat16, and scales of activations."""
    sizes = {"num_hidden_layers": 2, "quantization_config": {**FP8, **more}}
    written = Written(quantised.tiny_config("mistral4", **quantised.SIZES, **sizes))
    random = np.random.default_rng(0)
    for name, value in fuse_experts(quantised.random_tensors(written.config)).items():
        if "_proj" not in name:
            written.tensors[name] = written.values[name] = value
            continue
        linear, gate_up, down = shapes
        shape = gate_up if name.endswith("gate_up_proj") else down if value.ndim == 3 else linear
        scale = random.uniform(0.5, 2, shape).astype(ml_dtypes.bfloat16)
        codes = value.astype(ml_dtypes.float8_e4m3fn)
        parts = (len(codes), *((shape[1], 1) if len(shape) == 3 else (1, 1))) if codes.ndim == 3 else (1, 1)
        spread = scale.astype(np.float32).reshape(parts)
        if codes.ndim == 3:
            spread = np.repeat(spread, codes.shape[1] // parts[1], axis=1)
        module = name.removesuffix(".weight")
        written.values[name] = codes.astype(np.float32) * spread
        of_activations = f"{module}{'_' if codes.ndim == 3 else '.'}activation_scale"
        beside = {f"{name}_scale_inv": scale, of_activations: np.ones(shape[:1], np.float32)}
        written.tensors.update({name: codes, **beside})
    return written


@pytest.mark.parametrize("shapes", SHAPES)
def test_weights_are_codes_times_their_scale(shapes: str, tmp_path: Path) -> None:
    written = made(SHAPES[shapes])
    quantised.save(tmp_path, written)
    opened = Checkpoint.open(tmp_path)
    for name in opened.shapes:
        found = opened.read(name)
        if "*" not in name:
            np.testing.assert_array_equal(found, written.values[name], err_msg=name)
            continue
        down = name.endswith("down_proj.weight")
        whole = written.values[f"{EXPERTS}{'down_proj' if down else 'gate_up_proj'}"]
        half = slice(None) if down else slice(0, 32) if "gate" in name else slice(32, None)
        np.testing.assert_array_equal(found, whole[:, half], err_msg=name)
        codes = opened.coded(name, 3)
        assert (codes["scale"] == codes["scale"][0, 0]).all()
    assert opened.config.weight_block_size is None
    count = sum("activation_scale" in name for name in written.tensors)
    assert f"the {count} scales of activations are left out: what is rounded here follows each row" in opened.notes


def test_an_expert_may_have_its_tensors_for_itself_and_other_names(tmp_path: Path) -> None:
    """As vLLM has them."""
    written = Written(quantised.tiny_config(num_hidden_layers=2, quantization_config={"quant_method": "fp8"}))
    for number, (name, value) in enumerate(quantised.random_tensors(written.config).items()):
        if "_proj" not in name:
            written.tensors[name] = written.values[name] = value
            continue
        codes, scale, module = value.astype(ml_dtypes.float8_e4m3fn), np.float32(number), name.removesuffix(".weight")
        written.values[name] = codes.astype(np.float32) * scale
        beside = {f"{name}_scale": np.array(scale), f"{module}.input_scale": np.ones((), np.float32)}
        written.tensors.update({name: codes, **beside})
    quantised.save(tmp_path, written)
    opened = Checkpoint.open(tmp_path)
    for expert in range(8):
        found = opened.part(f"{EXPERTS}*.up_proj.weight", expert)
        np.testing.assert_array_equal(found, written.values[f"{EXPERTS}{expert}.up_proj.weight"])
    np.testing.assert_array_equal(opened.read(f"{O_PROJ}.weight"), written.values[f"{O_PROJ}.weight"])


Spoil = Callable[[dict[str, np.ndarray]], Any]


def put(name: str, value: np.ndarray) -> Spoil:
    return lambda tensors: tensors.update({name: value})


ONES = np.ones((8, 1, 1), np.float32)
BAD: dict[str, tuple[Spoil, type[CheckpointError], str]] = {
    "no scale": (lambda t: t.pop(f"{O_PROJ}.weight_scale_inv"), MissingScaleError, "there is no .*weight_scale_inv"),
    "no scale of experts": (lambda t: t.pop(f"{EXPERTS}down_proj_scale_inv"), MissingScaleError, "down_proj_scale_inv"),
    "two for a linear": (put(f"{O_PROJ}.weight_scale_inv", np.ones(2, np.float32)), TensorShapeError, r"shape \[2\]"),
    "blocks": (
        put(f"{O_PROJ}.weight_scale_inv", np.ones((2, 2), np.float32)), TensorShapeError, r"expected \[\] or \[1\]"
    ),
    "one for all experts": (put(f"{EXPERTS}down_proj_scale_inv", ONES[:1]), TensorShapeError, r"\[8\] or \[8, 1, 1\]"),
    "halves of down": (
        put(f"{EXPERTS}down_proj_scale_inv", np.ones((8, 2, 1), np.float32)), TensorShapeError, r"\[8, 2, 1\]"
    ),
    "as integers": (put(f"{O_PROJ}.weight_scale_inv", np.ones((), np.int32)), TensorDtypeError, "I32"),
    "zero": (put(f"{O_PROJ}.weight_scale_inv", np.zeros((), np.float32)), ScaleValueError, r"0\.0 at \[\]"),
    "nan": (put(f"{EXPERTS}down_proj_scale_inv", ONES * np.nan), ScaleValueError, r"nan at \[0, 0, 0\]"),
    "infinite": (put(f"{O_PROJ}.weight_scale_inv", np.array(np.inf, np.float32)), ScaleValueError, "inf"),
    "negative": (put(f"{EXPERTS}gate_up_proj_scale_inv", -ONES[:, 0, 0]), ScaleValueError, r"-1\.0 at \[0\]"),
    "of a weight that has none": (
        put(f"{O_PROJ}.weight", np.ones((64, 64), np.float32)), StrayScaleError, r"o_proj\.weight_scale_inv"
    ),
    "of nothing": (put("model.x.weight_scale_inv", np.ones((), np.float32)), UnexpectedTensorError, r"model\.x"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_scale_is_one_error(case: str, tmp_path: Path) -> None:
    spoil, error, reason = BAD[case]
    written = made()
    spoil(written.tensors)
    quantised.save(tmp_path, written)
    with pytest.raises(error, match=reason) as caught:
        opened = Checkpoint.open(tmp_path)
        for name in opened.shapes:
            opened.read(name)
    assert str(tmp_path) in str(caught.value)


def test_a_layer_that_is_said_to_be_left_out_and_is_not(tmp_path: Path) -> None:
    for key in ("modules_to_not_convert", "ignored_layers"):
        quantised.save(tmp_path, made(**{key: [O_PROJ]}))
        with pytest.raises(LeftOutError, match="o_proj"):
            Checkpoint.open(tmp_path)
