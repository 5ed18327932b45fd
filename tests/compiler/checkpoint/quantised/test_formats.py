"""Checkpoints that are quantised decode to what their formats' rules say, and their codes are read as they are."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.formats import coded
from tests import quantised
from tests.quantised import INTEGERS, WIDENED, Codes, Written

BOTH = INTEGERS | WIDENED


def stored_names(written: Written, name: str) -> list[str]:
    return [name] if "*" not in name else [name.replace("*", str(expert)) for expert in range(8)]


def check(folder: Path, written: Written) -> int:
    """How many weights were read in codes."""
    source, count = Checkpoint.open(folder), 0
    for name in source.shapes:
        for index, stored in enumerate(stored_names(written, name)):
            values = source.part(name, index) if "*" in name else source.read(name)
            np.testing.assert_array_equal(values, written.values[stored], err_msg=stored)
            if stored not in written.codes:
                continue
            count += 1
            found, expected = source.coded(name, index if "*" in name else None), written.codes[stored]
            np.testing.assert_array_equal(found["code"], expected.codes)
            np.testing.assert_array_equal(coded.values(found), written.values[stored])
    return count


@pytest.mark.parametrize("case", BOTH)
def test_codes_scales_and_zeros_are_read_as_they_are(case: str, tmp_path: Path) -> None:
    written = quantised.write(tmp_path, BOTH[case], num_hidden_layers=2)
    assert check(tmp_path, written) == len(written.codes) > 20


def test_groups_out_of_order_are_read_by_their_index(tmp_path: Path) -> None:
    order = np.random.default_rng(1)
    foreign = quantised.Foreign(
        quantised.gptq_config(4, 32, desc_act=True),
        lambda w: quantised.integers(w, 4, 32, order=order.permutation(w.shape[1])),
        lambda name, w: quantised.gptq(name, w, 4),
    )
    written = quantised.write(tmp_path, foreign, num_hidden_layers=2)
    assert check(tmp_path, written) == len(written.codes)
    source = Checkpoint.open(tmp_path)
    assert source.coding("model.layers.0.mlp.down_proj.weight").group is None  # type: ignore[union-attr]
    assert source.coding("model.layers.0.self_attn.kv_b_proj.weight").group == 32  # type: ignore[union-attr]  # one group


def test_mxfp4_of_compressed_tensors_is_read(tmp_path: Path) -> None:
    quantization = {**quantised.group_of(4, 32, type="float"), "format": "mxfp4-pack-quantized"}
    written = quantised.write(
        tmp_path, quantised.Foreign(quantization, quantised.e2m1, quantised.mxfp4_packed), num_hidden_layers=2
    )
    assert check(tmp_path, written) == len(written.codes)


def test_fused_experts_in_mxfp4_are_read_one_by_one(tmp_path: Path) -> None:
    left_out = ["model.layers.*.self_attn", "model.layers.*.mlp.gate", "model.embed_tokens", "lm_head"]
    written = quantised.write_fused(tmp_path, {"quant_method": "mxfp4", "modules_to_not_convert": left_out})
    assert check(tmp_path, written) == len(written.codes) == 2 * 8 * 3


def e8m0(exponents: np.ndarray) -> np.ndarray:
    return exponents.astype(np.uint8).view(ml_dtypes.float8_e8m0fnu)


@pytest.mark.parametrize("stored", ["exponents", "float32"])
def test_scales_that_are_powers_of_two_are_read(stored: str, tmp_path: Path) -> None:
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [32, 32], "scale_fmt": "ue8m0"}
    written = quantised.Written(quantised.tiny_config(**quantised.SIZES, quantization_config=quantization))
    random = np.random.default_rng(0)
    for name, value in quantised.random_tensors(written.config).items():
        if "_proj" not in name:
            written.tensors[name] = written.values[name] = value
            continue
        codes = value.astype(ml_dtypes.float8_e4m3fn)
        exponents = random.integers(120, 134, (-(-len(value) // 32), -(-value.shape[1] // 32)))
        scale = np.exp2(exponents - 127.0).astype(np.float32)
        written.tensors[name] = codes
        written.tensors[f"{name}_scale_inv"] = e8m0(exponents) if stored == "exponents" else scale
        rows, columns = (np.arange(size) // 32 for size in value.shape)
        written.values[name] = codes.astype(np.float32) * scale[rows][:, columns]
    quantised.save(tmp_path, written)
    check(tmp_path, written)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("packed", [False, True])
def test_integers_with_one_scale_a_tensor_are_read(packed: bool, shape: tuple[int, ...], tmp_path: Path) -> None:
    format = "pack-quantized" if packed else "int-quantized"
    quantization = {**quantised.group_of(8, 0, strategy="tensor", group_size=None), "format": format}
    written = Written(quantised.tiny_config(**quantised.SIZES, quantization_config=quantization))
    for name, value in quantised.random_tensors(written.config).items():
        if "_proj" not in name:
            written.tensors[name] = written.values[name] = value
            continue
        codes, scale = np.clip(np.rint(value * 100) + 128, 0, 255).astype(np.uint8), np.full((len(value), 1), 0.5)
        w = Codes(codes, scale, np.full((len(value), 1), 128, np.uint8), np.zeros(value.shape[1], np.int64))
        module = name.removesuffix(".weight")
        parts = quantised.pack_quantized(module, w, 8) if packed else quantised.int_quantized(module, w)
        written.tensors.update(parts | {f"{module}.weight_scale": np.full(shape, 0.5, np.float32)})
        written.values[name] = w.values
    quantised.save(tmp_path, written)
    check(tmp_path, written)


# The shape of the scales of a matrix [N, K], and the rows and columns that share one.
SCALES = {
    "tensor": lambda n, k: ((1,), (n, k)),
    "channel": lambda n, k: ((n, 1), (1, k)),
    "block": lambda n, k: ((-(-n // 48), -(-k // 32)), (48, 32)),
    "group": lambda n, k: ((n, k // 32), (1, 32)),
}


@pytest.mark.parametrize("strategy", SCALES)
def test_float_quantized_is_read(strategy: str, tmp_path: Path) -> None:
    more = {"block_structure": [48, 32]} if strategy == "block" else {}
    size = {"strategy": strategy, "group_size": 32 if strategy == "group" else None}
    quantization = {**quantised.group_of(8, 0, type="float", **size, **more), "format": "float-quantized"}
    written = Written(quantised.tiny_config(**quantised.SIZES, quantization_config=quantization))
    random = np.random.default_rng(0)
    for name, value in quantised.random_tensors(written.config).items():
        if "_proj" not in name:
            written.tensors[name] = written.values[name] = value
            continue
        codes, module = value.astype(ml_dtypes.float8_e4m3fn), name.removesuffix(".weight")
        shape, (rows, columns) = SCALES[strategy](*value.shape)
        scale = random.uniform(0.5, 2, shape).astype(ml_dtypes.bfloat16)
        grid = scale.astype(np.float32).reshape(-(-len(value) // rows), -1)
        spread = grid[np.arange(len(value)) // rows][:, np.arange(value.shape[1]) // columns]
        written.values[name] = codes.astype(np.float32) * spread
        written.tensors.update({name: codes, f"{module}.weight_scale": scale})
        written.tensors[f"{module}.input_scale"] = np.ones(1, np.float32)
    quantised.save(tmp_path, written)
    check(tmp_path, written)
