from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c.compiler.checkpoint import reader
from dsv3c.compiler.checkpoint.errors import (
    ChangedFileError,
    ConfigConflictError,
    JsonError,
    MissingTensorError,
    NonFiniteWeightError,
    NoWeightsError,
    ScaleValueError,
    TokenizerVocabularyError,
    UnknownTensorError,
    UnreadableFileError,
)
from dsv3c.compiler.checkpoint.reader import Checkpoint
from tests.checkpoints import (
    SCALE_SUFFIX,
    random_tensors,
    safetensors_bytes,
    tiny_config,
    write_checkpoint,
    write_safetensors,
    write_sharded,
)

MTP = {"num_nextn_predict_layers": 1}


def stored_under(name: str, tensors: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The stored tensors of a logical name, the definition of fp8 applied to each."""
    names = [name] if "*" not in name else [name.replace("*", str(expert)) for expert in range(8)]
    values = []
    for stored in names:
        value = tensors[stored].astype(np.float32)
        if stored + SCALE_SUFFIX in tensors:
            grid = np.kron(tensors[stored + SCALE_SUFFIX], np.ones((32, 32), np.float32))
            value = value * grid[: value.shape[0], : value.shape[1]]
        values.append(value)
    return values


@pytest.mark.parametrize("model_type", ["deepseek_v2", "deepseek_v3", "glm4_moe_lite", "youtu"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e4m3"])
def test_every_tensor_of_every_model_type(model_type: str, dtype: str, tmp_path: Path) -> None:
    mtp = {} if model_type in ("deepseek_v2", "youtu") else MTP
    fp8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32]}}
    config = tiny_config(model_type, **mtp, **(fp8 if dtype == "float8_e4m3" else {}))
    tensors = write_checkpoint(tmp_path, config, dtype=dtype)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.notes == ()
    assert checkpoint.path == tmp_path
    for name, shape in checkpoint.shapes.items():
        expected = stored_under(name, tensors)
        whole = checkpoint.read(name)
        assert whole.shape == shape and whole.dtype == np.float32
        np.testing.assert_array_equal(whole, expected if "*" in name else expected[0])
        parts = list(checkpoint.parts(name))
        np.testing.assert_array_equal(parts, expected)
        np.testing.assert_array_equal(checkpoint.part(name, len(parts) - 1), expected[-1])
    n_read = sum(shape[0] if "*" in name else 1 for name, shape in checkpoint.shapes.items())
    assert n_read == sum(not name.endswith(SCALE_SUFFIX) for name in tensors)


def test_the_bundled_model(bundled_model: Path) -> None:
    checkpoint = Checkpoint.open(bundled_model)
    assert checkpoint.notes == ()
    assert checkpoint.shapes["model.layers.3.mlp.experts.*.gate_proj.weight"] == (16, 128, 256)
    total = 0
    for name in checkpoint.shapes:
        for part in checkpoint.parts(name):
            assert np.isfinite(part).all()
            total += part.size
    assert total == sum(int(np.prod(shape)) for shape in checkpoint.shapes.values())
    assert 9.6e6 < total < 9.9e6


def test_shards_read_as_one_file_does(tmp_path: Path) -> None:
    config = tiny_config(**MTP)
    write_checkpoint(tmp_path / "one", config)
    tensors = list(random_tensors(config).items())
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "config.json").write_text(json.dumps(config))
    write_sharded(tmp_path / "many", {"a.safetensors": dict(tensors[::2]), "b.safetensors": dict(tensors[1::2])})
    one, many = Checkpoint.open(tmp_path / "one"), Checkpoint.open(str(tmp_path / "many"))
    assert one.shapes == many.shapes
    for name in one.shapes:
        np.testing.assert_array_equal(one.read(name), many.read(name))


def test_mtp_layers_announced_but_absent(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config())
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(**MTP)))
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.config.num_nextn_predict_layers == 0
    assert len(checkpoint.config.mlp_layer_types) == 3
    assert "announces 1 MTP layers" in checkpoint.notes[0]


def test_mtp_layers_present_but_not_announced(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config(**MTP))
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(num_nextn_predict_layers=0)))
    checkpoint = Checkpoint.open(tmp_path)
    assert not any("layers.3." in name for name in checkpoint.shapes)
    assert "are ignored" in checkpoint.notes[0]
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.config.num_nextn_predict_layers == 1
    assert checkpoint.notes == ("config.json has no num_nextn_predict_layers; the tensors say 1",)


def test_one_of_two_mtp_layers_is_an_error(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config(**MTP))
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(num_nextn_predict_layers=2)))
    with pytest.raises(MissingTensorError, match=r"model\.layers\.4\."):
        Checkpoint.open(tmp_path)


def test_a_tied_head_may_be_stored_and_is_not_listed(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path, tiny_config(tie_word_embeddings=True))
    alone = Checkpoint.open(tmp_path)
    write_safetensors(
        tmp_path / "model.safetensors", {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}
    )
    both = Checkpoint.open(tmp_path)
    assert both.shapes == alone.shapes
    assert "lm_head.weight" not in alone.shapes
    assert (alone.notes, len(both.notes)) == ((), 1) and "lm_head.weight is ignored" in both.notes[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tied_head_that_is_another_matrix_is_refused(dtype: str, tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path, tiny_config(tie_word_embeddings=True), dtype=dtype)
    head = tensors["model.embed_tokens.weight"].copy()
    head[-1, -1] += 1
    write_safetensors(tmp_path / "model.safetensors", {**tensors, "lm_head.weight": head})
    with pytest.raises(ConfigConflictError, match=r"tie_word_embeddings .* lm_head\.weight"):
        Checkpoint.open(tmp_path)


def test_a_tied_head_may_have_another_type(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path, tiny_config(tie_word_embeddings=True), dtype="bfloat16")
    head = tensors["model.embed_tokens.weight"].astype(np.float32)
    write_safetensors(tmp_path / "model.safetensors", {**tensors, "lm_head.weight": head})
    assert "lm_head.weight is ignored" in Checkpoint.open(tmp_path).notes[0]


def spoiled(folder: Path, name: str, value: float, dtype: str = "bfloat16") -> Checkpoint:
    fp8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32]}}
    tensors = write_checkpoint(folder, tiny_config(**(fp8 if dtype == "float8_e4m3" else {})), dtype=dtype)
    tensors[name].reshape(-1)[-1] = value
    write_safetensors(folder / "model.safetensors", tensors)
    return Checkpoint.open(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("stored", "name", "position"),
    [
        ("model.norm.weight", "model.norm.weight", r"\[63\]"),
        ("lm_head.weight", "lm_head.weight", r"\[95, 63\]"),
        ("model.layers.1.mlp.gate.e_score_correction_bias",) * 2 + (r"\[7\]",),
        ("model.layers.1.mlp.experts.7.up_proj.weight", "model.layers.1.mlp.experts.*.up_proj.weight", r"\[31, 63\]"),
    ],
)
def test_values_that_are_not_finite(value: float, stored: str, name: str, position: str, tmp_path: Path) -> None:
    checkpoint = spoiled(tmp_path, stored, value)
    with pytest.raises(NonFiniteWeightError, match=rf"model.safetensors: '{stored}' is {value} at {position}"):
        checkpoint.read(name)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0])
def test_bad_scales(value: float, tmp_path: Path) -> None:
    stored = "model.layers.1.mlp.experts.7.up_proj.weight_scale_inv"
    checkpoint = spoiled(tmp_path, stored, value, "float8_e4m3")
    with pytest.raises(ScaleValueError, match=rf"'{stored}' is {value} at \[0, 1\]"):
        checkpoint.part("model.layers.1.mlp.experts.*.up_proj.weight", 7)
    checkpoint.part("model.layers.1.mlp.experts.*.up_proj.weight", 6)


def test_a_file_cut_after_opening(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config())
    checkpoint = Checkpoint.open(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 5000)
    with pytest.raises(ChangedFileError, match="has 5000 now"):
        checkpoint.read("lm_head.weight")


def test_unknown_names(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config())
    checkpoint = Checkpoint.open(tmp_path)
    for name in ("x", "model.layers.1.mlp.experts.0.up_proj.weight"):
        with pytest.raises(UnknownTensorError, match=name):
            checkpoint.read(name)
        with pytest.raises(UnknownTensorError, match=name):
            checkpoint.parts(name)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config())
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 96}}}))
    assert "'a' with id 96" in Checkpoint.open(tmp_path).notes[0]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": -1}}}))
    with pytest.raises(TokenizerVocabularyError, match="-1"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("ids", [{"pad_token_id": -1}, {"pad_token_id": 96}, {"eos_token_id": [1, 96]}])
def test_special_ids_that_nothing_uses_do_not_stop_it(tmp_path: Path, ids: dict[str, Any]) -> None:
    write_checkpoint(tmp_path, tiny_config(**ids))
    checkpoint = Checkpoint.open(tmp_path)
    assert next(iter(ids)) in checkpoint.notes[0]
    assert (checkpoint.config.pad_token_id, checkpoint.config.eos_token_ids) == (None, (1,))


def test_folders_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(NoWeightsError):
        Checkpoint.open(tmp_path)
    with pytest.raises(UnreadableFileError):
        Checkpoint.open(tmp_path / "absent")
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes({}))
    with pytest.raises(UnreadableFileError, match=r"config\.json.*No such file"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_bytes(b"")
    with pytest.raises(JsonError, match=r"config\.json"):
        Checkpoint.open(tmp_path)


def test_hashes_of_all_files(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config())
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    (tmp_path / "notes.txt").write_text("not a part of the model")
    hashes = Checkpoint.open(tmp_path).file_hashes()
    assert list(hashes) == ["config.json", "tokenizer.json", "model.safetensors"]
    for name, digest in hashes.items():
        assert digest == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_hashes_are_of_what_links_lead_to(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_checkpoint(folder, tiny_config())
    expected = Checkpoint.open(folder).file_hashes()
    for name in expected:
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    assert Checkpoint.open(folder).file_hashes() == expected


def test_hashes_that_are_made_beside_other_work_are_the_same(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config())
    checkpoint = Checkpoint.open(tmp_path)
    with checkpoint.hashing() as hashes:
        found = hashes()
    assert list(found.items()) == list(checkpoint.file_hashes().items())
    assert checkpoint.provenance(found) == checkpoint.provenance()


def test_hashing_ends_with_what_it_stands_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, tiny_config())
    checkpoint = Checkpoint.open(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "model.safetensors")
    writer = os.open(tmp_path / "model.safetensors", os.O_RDWR)
    monkeypatch.setattr(reader, "file_size", lambda path: 0)
    later = threading.Timer(0.1, os.write, (writer, b"and on"))
    with pytest.raises(RuntimeError, match="failed"), checkpoint.hashing():
        os.write(writer, b"endless")
        later.start()
        raise RuntimeError("failed")
    later.join()
    os.close(writer)
