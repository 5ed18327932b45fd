"""A GGUF file in place of a folder, from the command's path to the artifact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsv3c.compiler.driver.pipeline import compile_checkpoint
from dsv3c.compiler.options import CompileOptions
from tests.checkpoints import tiny_config, write_checkpoint
from tests.compiler.driver.fake_target import FakeTarget
from tests.gguf_files import gguf_tensors, keys_of, write_gguf

FEW = {"num_hidden_layers": 2}
CONFIGS = {
    "deepseek2": tiny_config(**FEW, num_nextn_predict_layers=1),
    "deepseek32": tiny_config("deepseek_v32", **FEW, num_nextn_predict_layers=1),
    "glm-dsa": tiny_config("glm_moe_dsa", **FEW, first_k_dense_replace=1, mlp_layer_types=..., n_group=1, topk_group=1),
    "mistral4": tiny_config("mistral4", **FEW, rope_parameters={"rope_type": "default"}),
    "minicpm3": tiny_config("minicpm3", **FEW, dim_model_base=256),
}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_artifact_is_that_of_the_safetensors(architecture: str, tmp_path: Path, fake_target: FakeTarget) -> None:
    config = CONFIGS[architecture]
    tensors = write_checkpoint(tmp_path / "folder", config)
    write_gguf(tmp_path / "model.gguf", keys_of(config), gguf_tensors(config, tensors), architecture=architecture)
    for name in ("folder", "model.gguf"):
        compile_checkpoint(tmp_path / name, tmp_path / f"{name}-out", CompileOptions())
    ours, theirs = (tmp_path / f"{name}-out" for name in ("folder", "model.gguf"))
    for file in ("weights.safetensors", "plan.json"):
        assert (theirs / file).read_bytes() == (ours / file).read_bytes()
    manifest = json.loads((theirs / "manifest.json").read_text("utf-8"))
    assert set(manifest["source"]["files"]) == {"model.gguf"}


def test_codes_are_kept_and_no_scale_is_rounded(tmp_path: Path, fake_target: FakeTarget) -> None:
    config = tiny_config(num_hidden_layers=2)
    tensors = gguf_tensors(config, write_checkpoint(tmp_path / "folder", config))
    write_gguf(tmp_path / "model.gguf", keys_of(config), tensors, "Q8_0")
    report = compile_checkpoint(tmp_path / "model.gguf", tmp_path / "out", CompileOptions(kept=None))
    kept = next(note for note in report.notes if note.startswith("codes are kept, in int8-g32"))
    assert "(int8 in groups of 32)" in kept
    assert not any("not exact in float16" in note for note in report.notes)
