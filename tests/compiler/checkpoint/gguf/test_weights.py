from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from dsv3c.compiler.checkpoint import gguf
from dsv3c.compiler.checkpoint.errors import GgufMissingError, NonFiniteWeightError, ScaleValueError
from dsv3c.compiler.checkpoint.gguf.container import GgufFile
from dsv3c.compiler.checkpoint.gguf.weights import Blocks, Halves
from dsv3c.compiler.checkpoint.quantised.weight import Weight
from dsv3c.compiler.checkpoint.stored import StoredTensor
from dsv3c.compiler.formats import coded, keeping
from dsv3c.compiler.formats.table import FORMATS
from tests.checkpoints import random_tensors, tiny_config
from tests.gguf_files import finite_blocks, gguf_tensors, keys_of, write_gguf

NAME, OURS = "blk.0.attn_output.weight", "model.layers.0.self_attn.o_proj.weight"
STACK, EXPERTS = "blk.0.ffn_up_exps.weight", "model.layers.0.mlp.experts.*.up_proj.weight"
BLOCKS = Blocks(heads=2, nope=32, value=4)
KEPT = {"Q8_0": "int8-g32", "Q5_0": "int5-g32", "Q4_0": "int4-g32", "MXFP4": "mxfp4"}
DECODED = ("Q4_1", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ2_XS")


def found(path: Path, name: str, shape: tuple[int, ...]) -> Weight:
    file = GgufFile(path, gguf.known_as)
    weight = BLOCKS.find(name, shape, {each: StoredTensor(file, info) for each, info in file.tensors.items()})
    assert weight is not None
    return weight


def written(path: Path, kind: str, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Random blocks of a type, and what the package gguf makes of them."""
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    number = GGMLQuantizationType[kind]
    if kind in KEPT:
        values = np.random.default_rng(1).standard_normal((rows, columns)).astype(np.float32)
        values[0, :32] = 0
        data = quants.quantize(values, number)
    else:
        data = finite_blocks(kind, rows, columns // quants.GGML_QUANT_SIZES[number][0])
    write_gguf(path, {}, {name: data.reshape(*shape[:-1], -1)}, kind)
    return data, quants.dequantize(data, number).reshape(shape)


@pytest.mark.parametrize("kind", [*KEPT, *DECODED])
def test_values_are_those_of_the_package_gguf(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    _, expected = written(path, kind, NAME, (6, 512))
    np.testing.assert_array_equal(found(path, OURS, (6, 512)).decode(), expected)
    _, stack = written(path, kind, STACK, (3, 6, 512))
    weight = found(path, EXPERTS, (3, 6, 512))
    np.testing.assert_array_equal(weight.cut(2, (0, 6)).decode(), stack[2])
    np.testing.assert_array_equal(weight.cut(1, (2, 5)).decode(), stack[1, 2:5])


@pytest.mark.parametrize(("kind", "format"), KEPT.items())
def test_codes_are_kept_without_loss_where_a_format_has_their_grid(kind: str, format: str, tmp_path: Path) -> None:
    """Also where scales are below 0, as half of those of Q4_0 are, and 0."""
    path = tmp_path / "model.gguf"
    _, expected = written(path, kind, NAME, (6, 512))
    weight = found(path, OURS, (6, 512))
    assert weight.coding is not None
    assert str(weight.coding.format(lambda row: True)) == format
    codes = weight.coded()
    np.testing.assert_array_equal(coded.values(codes), expected)
    kept = keeping.keep(codes, FORMATS[format])
    assert kept is not None
    assert kept.fits.all()
    assert kept.scales == 0


@pytest.mark.parametrize("kind", DECODED)
def test_other_types_are_floats(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    _, expected = written(path, kind, NAME, (2, 512))
    weight = found(path, OURS, (2, 512))
    assert weight.coding is None
    np.testing.assert_array_equal(weight.coded(), expected)


def halves(path: Path, k: str, v: str) -> tuple[Weight, np.ndarray]:
    """kv_b_proj [2 * (32 + 4), 64] of halves that are rounded to these types, and what it should be."""
    rng = np.random.default_rng(2)
    values = {"k": rng.standard_normal((2, 64, 32)), "v": rng.standard_normal((2, 4, 64))}
    rounded: dict[str, Any] = {}
    for half, kind in (("k", k), ("v", v)):
        data = quants.quantize(values[half].astype(np.float32), GGMLQuantizationType[kind])
        write_gguf(path.with_name(f"{half}.gguf"), {}, {f"blk.0.attn_{half}_b.weight": data}, kind)
        rounded[half] = quants.dequantize(data, GGMLQuantizationType[kind]).reshape(values[half].shape)
    files = [GgufFile(path.with_name(f"{half}.gguf"), gguf.known_as) for half in "kv"]
    stored = {name: StoredTensor(file, info) for file in files for name, info in file.tensors.items()}
    weight = BLOCKS.find("model.layers.0.self_attn.kv_b_proj.weight", (72, 64), stored)
    assert weight is not None
    expected = np.concatenate([rounded["k"].transpose(0, 2, 1), rounded["v"]], axis=1)
    return weight, expected.reshape(72, 64)


@pytest.mark.parametrize(("k", "v"), [("Q8_0", "Q8_0"), ("Q4_0", "Q4_0"), ("Q8_0", "Q4_0"), ("BF16", "Q4_1")])
def test_halves_of_kv_b(k: str, v: str, tmp_path: Path) -> None:
    weight, expected = halves(tmp_path / "model.gguf", k, v)
    assert isinstance(weight, Halves)
    assert (weight.coding is not None) == (k == v)
    np.testing.assert_array_equal(weight.decode(), expected)
    whole = weight.coded()
    np.testing.assert_array_equal(coded.values(whole) if coded.is_coded(whole.dtype) else whole, expected)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_0", "Q4_1", "Q4_K"])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_scale_that_is_no_number_is_found(kind: str, bad: float, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    data, _ = written(path, kind, STACK, (2, 3, 512))
    size = quants.GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    data = data.reshape(2, 3, -1).copy()
    data[1, 2, size : size + 2] = np.array([bad], "<f2").view(np.uint8)
    write_gguf(path, {}, {STACK: data}, kind)
    weight = found(path, EXPERTS, (2, 3, 512))
    assert np.isfinite(weight.cut(0, (0, 3)).decode()).all()
    with pytest.raises(NonFiniteWeightError, match=rf"at \[1, 2, {256 if kind == 'Q4_K' else 32}\]"):
        weight.cut(1, (0, 3)).decode()


def test_exponent_that_stands_for_no_number_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    data, _ = written(path, "MXFP4", NAME, (3, 64))
    data[2, 17] = 255
    write_gguf(path, {}, {NAME: data}, "MXFP4")
    with pytest.raises(ScaleValueError, match=r"\[2, 1\]"):
        found(path, OURS, (3, 64)).decode()


def test_types_that_need_the_package_say_so_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    tensors = gguf_tensors(config, random_tensors(config))
    write_gguf(tmp_path / "kept.gguf", keys_of(config), tensors, "Q8_0")
    write_gguf(tmp_path / "others.gguf", keys_of(config), tensors, "Q4_1")
    assert (
        gguf.open_model(tmp_path / "others.gguf").notes[-1].endswith("are decoded, then taken for floats: 31 in Q4_1")
    )
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    assert gguf.open_model(tmp_path / "kept.gguf").notes == ("the file has no tokenizer",)
    with pytest.raises(GgufMissingError, match="Q4_1"):
        gguf.open_model(tmp_path / "others.gguf")
