"""The weight format fp8: float8_e4m3 codes in blocks, against ml_dtypes; codes of a checkpoint stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3c import targets
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.checkpoint.errors import NonFiniteWeightError
from dsv3c.compiler.checkpoint.safetensors import SafetensorsFile
from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Value, topological_order
from dsv3c.compiler.driver import lowering, pipeline, weights
from dsv3c.compiler.errors import FormatRefusedError
from dsv3c.compiler.formats import fp8, rows16
from dsv3c.compiler.formats.elements import as_float32
from dsv3c.compiler.formats.quant import QTensor, quantize
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.options import CompileOptions
from tests.checkpoints import tiny_config, write_checkpoint, write_safetensors

SPEC = WeightFormat.parse("fp8")
E4M3 = ml_dtypes.float8_e4m3fn
SIZES = st.integers(1, 300)


def normal(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def coded(n: int, k: int, block: tuple[int, int] = (128, 128)) -> Any:
    """Random codes, not NaN, with a scale for each block."""
    random = np.random.default_rng(n + k)
    out = np.empty((n, k), fp8.CODED)
    out["code"] = random.choice([code for code in range(256) if code & 0x7F != 0x7F], (n, k))
    scale = random.uniform(1e-5, 2, (-(-n // block[0]), -(-k // block[1]))).astype(np.float32)
    out["scale"] = scale[np.arange(n)[:, None] // block[0], np.arange(k) // block[1]]
    return out


def test_its_name_and_what_it_takes() -> None:
    assert (SPEC.name, SPEC.has_codes, SPEC.padded_k(129), SPEC.scale_groups(129)) == ("fp8", True, 256, 2)
    assert SPEC.bits_per_weight() == 8.25
    options = CompileOptions(quant="fp8")
    assert (options.resolved_head_quant, options.resolved_embed_quant) == ("bfloat16", "bfloat16")


def test_every_code_is_decoded() -> None:
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(fp8.decode(codes), codes.view(E4M3).astype(np.float32))


@pytest.mark.parametrize("shape", [(1, 1), (127, 129), (130, 256), (3, 128, 40)])
def test_rounding_is_to_nearest_in_each_block(shape: tuple[int, ...]) -> None:
    w = normal(*shape)
    w[..., : shape[-1] // 2] *= 1e-3
    stored = quantize(w, SPEC)
    *leading, n, k = shape
    for index in np.ndindex(*leading):
        for row, column in np.ndindex(-(-n // 128), -(-k // 128)):
            part = np.s_[(*index, slice(row * 128, row * 128 + 128), slice(column * 128, column * 128 + 128))]
            scale = np.float32(np.abs(w[part]).max() / np.float32(448))
            assert (stored.scale[(*index, slice(row * 128, row * 128 + 128), column)] == scale).all()
            np.testing.assert_array_equal(stored.codes[part][..., : w[part].shape[1]], codes_of(w[part], scale))
    error = np.abs(stored.dequantize() - w)
    # Half a step: 2^-4 of a number, 2^-10 of the scale where numbers are subnormal.
    assert (error <= np.maximum(np.abs(w) / 16, np.abs(w).max() / 448 / 1024) * (1 + 1e-6)).all()


def codes_of(w: Any, scale: Any) -> Any:
    return (w / scale).astype(E4M3).view(np.uint8)


def test_zeros_stay_zeros() -> None:
    stored = quantize(np.zeros((5, 200), np.float32), SPEC)
    assert not stored.codes.any() and not stored.dequantize().any()


@given(st.sampled_from([(), (2,), (2, 3)]), SIZES, SIZES)
def test_packing_has_an_exact_inverse(leading: tuple[int, ...], n: int, k: int) -> None:
    stored = quantize(normal(*leading, n, k), SPEC)
    packed = rows16.pack(stored, SPEC)
    types = rows16.component_types(SPEC, leading, n, k)
    assert {role: array.shape for role, array in packed.items()} == {role: shape for role, (_, shape) in types.items()}
    found = rows16.unpack(packed, SPEC, n, k)
    assert isinstance(found, QTensor)
    np.testing.assert_array_equal(found.codes, stored.codes)
    np.testing.assert_array_equal(found.scale, stored.scale)


@given(SIZES, SIZES)
def test_codes_of_a_checkpoint_are_kept(n: int, k: int) -> None:
    w = coded(n, k)
    stored = quantize(w, SPEC)
    np.testing.assert_array_equal(stored.codes[:, :k], w["code"])
    np.testing.assert_array_equal(stored.scale, w["scale"][:, ::128])
    np.testing.assert_array_equal(stored.dequantize(), as_float32(w))


def test_groups_with_several_scales_are_rounded_anew() -> None:
    w = coded(256, 256, block=(128, 96))
    stored = quantize(w, SPEC)
    values = as_float32(w)
    assert (np.abs(stored.dequantize() - values) <= np.abs(values).max(axis=1, keepdims=True) / 16).all()
    w[:128] = coded(128, 256)
    np.testing.assert_array_equal(quantize(w, SPEC).codes[:128], w["code"][:128])


def test_other_formats_decode_it() -> None:
    w = coded(40, 130)
    for name in ("int8", "float32"):
        spec = WeightFormat.parse(name)
        found = ops.lookup("quantize").evaluate(w, format=name)
        expected = quantize(as_float32(w), spec).codes if spec.has_codes else as_float32(w)
        np.testing.assert_array_equal(found.codes if spec.has_codes else found, expected)


BIG = {
    "hidden_size": 256, "intermediate_size": 384, "moe_intermediate_size": 128, "q_lora_rank": 128,
    "kv_lora_rank": 128, "qk_nope_head_dim": 128, "v_head_dim": 128, "qk_rope_head_dim": 16, "num_hidden_layers": 2,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
}  # fmt: skip


@pytest.mark.parametrize("name", ["vulkan", "x86"])
def test_an_artifact_has_the_codes_and_scales_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    """Every matrix of a checkpoint with whole blocks, in what is written for a target."""
    raw = write_checkpoint(tmp_path, tiny_config(**BIG), dtype="float8_e4m3")
    source, options = Checkpoint.open(tmp_path), CompileOptions(target=name, quant="fp8")
    target = targets.get(name)
    lowered = lowering.lower(source.config, source.shapes, options, target)
    planned = target.plan(lowered.entries, lowered.bounds)
    file = weights.lay_out(planned.recipes)
    weights.write(file, tmp_path / "weights", source.coded, lambda n: None)
    written = SafetensorsFile(tmp_path / "weights")
    count = 0
    for name, recipe in planned.recipes.items():
        if recipe.type.dtype != "fp8":
            continue
        count += 1
        shapes = rows16.component_types(SPEC, recipe.shape[:-2], *recipe.shape[-2:])  # type: ignore[arg-type]
        parts = {
            role: written.array(name if role == "data" else f"{name}.{role}").reshape(shape)
            for role, (_, shape) in shapes.items()
        }
        found = rows16.unpack(parts, SPEC, *recipe.shape[-2:])  # type: ignore[arg-type]
        assert isinstance(found, QTensor)
        codes, scale = expected_of(recipe, raw)
        np.testing.assert_array_equal(found.codes[..., : codes.shape[-1]], codes, err_msg=name)
        np.testing.assert_array_equal(found.scale, scale[..., ::128], err_msg=name)
    assert count >= 10


def expected_of(recipe: Value, raw: Any) -> tuple[Any, Any]:
    """Codes and scales of the checkpoint's tensors, moved as the recipe moves them: two float32 arrays of its shape."""
    unquantised = next(value for value in topological_order([recipe]) if value.op == "quantize").inputs[0]

    def leaf(value: Value, scales: bool) -> Any:
        name = str(value.attrs["name"])
        names = [name.replace("*", str(e)) for e in range(8)] if "*" in name else [name]
        read = [spread(raw, each) if scales else raw[each].view(np.uint8).astype(np.float32) for each in names]
        return np.stack(read) if "*" in name else read[0]

    codes, scale = (ops.evaluate([unquantised], lambda value, s=s: leaf(value, s))[0] for s in (False, True))
    return codes.astype(np.uint8), scale


def spread(raw: Any, name: str) -> Any:
    rows, columns = (np.arange(size) // 128 for size in raw[name].shape)
    return raw[f"{name}_scale_inv"][rows][:, columns]


def test_a_target_without_kernels_for_it_says_so(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config())
    with pytest.raises(FormatRefusedError, match="onnx has no kernels for weights in fp8"):
        pipeline.compile_checkpoint(tmp_path, tmp_path / "out", CompileOptions(target="onnx", quant="fp8"))


def test_a_code_that_is_no_number_is_found_in_codes_too(tmp_path: Path) -> None:
    config = tiny_config(**BIG)
    raw = write_checkpoint(tmp_path, config, dtype="float8_e4m3")
    name = "model.layers.0.mlp.down_proj.weight"
    whole = Checkpoint.open(tmp_path)
    np.testing.assert_array_equal(as_float32(whole.coded(name)), whole.read(name))
    np.testing.assert_array_equal(whole.coded(name)["code"], raw[name].view(np.uint8))
    assert whole.coded("model.norm.weight").dtype == np.float32
    raw[name].view(np.uint8)[3, 7] = 0x7F
    write_safetensors(tmp_path / "model.safetensors", raw, {"format": "pt"})
    with pytest.raises(NonFiniteWeightError, match=r"\[3, 7\]"):
        Checkpoint.open(tmp_path).coded(name)
