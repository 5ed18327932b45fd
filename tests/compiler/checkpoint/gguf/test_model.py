from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from dsv3c.compiler.checkpoint import Checkpoint, gguf, sides
from dsv3c.compiler.checkpoint.errors import (
    ConfigValueError,
    GgufError,
    GgufModelError,
    GgufSplitError,
    MissingConfigKeyError,
    MissingTensorError,
    TensorDtypeError,
    TensorShapeError,
    UnexpectedTensorError,
    UnsupportedConfigError,
)
from dsv3c.compiler.cli.inspect import inspect_command
from dsv3c.compiler.driver import text_files
from dsv3c.compiler.driver.pipeline import default_output
from dsv3c.compiler.driver.size_report import plan_checkpoint
from dsv3c.compiler.options import CompileOptions
from tests.checkpoints import YARN, random_tensors, tiny_config, write_checkpoint
from tests.gguf_files import architecture_of, gguf_tensors, keys_of, write_gguf

MTP = {"num_nextn_predict_layers": 1}
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.1, 1.5, 2.5], "long_factor": [1.0, 1.2, 4.0, 9.0]}
MISTRAL_ROPE = {**YARN, "rope_theta": 10000.0, "llama_4_scaling_beta": 0.1}


def yarn_keys(architecture: str, log_multiplier: float) -> dict[str, Any]:
    keys = {
        "type": "yarn", "factor": 4.0, "original_context_length": 128, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0,
        "yarn_log_multiplier": log_multiplier,
    }  # fmt: skip
    return {f"{architecture}.rope.scaling.{key}": value for key, value in keys.items()}


CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "v3 with MTP": (tiny_config(**MTP), {}),
    "v3 with YaRN": (tiny_config(rope_scaling={**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}),
                     yarn_keys("deepseek2", 0.0707)),
    "v2, grouped": (tiny_config("deepseek_v2", topk_method="group_limited_greedy"), {}),
    "v2 without groups and q latent": (tiny_config("deepseek_v2", q_lora_rank=None, n_group=1, topk_group=1), {}),
    "dense, tied": (tiny_config("youtu"), {}),
    "v3.2 with MTP": (tiny_config("deepseek_v32", **MTP, rope_scaling=YARN), yarn_keys("deepseek32", 0.1)),
    "GLM-5 with MTP": (tiny_config("glm_moe_dsa", **MTP, first_k_dense_replace=1, mlp_layer_types=..., n_group=1,
                                   topk_group=1, indexer_types=["full", "shared", "full"]), {}),
    "Mistral": (tiny_config("mistral4", rope_parameters=MISTRAL_ROPE),
                {**yarn_keys("mistral4", 0.1), "mistral4.attention.temperature_scale": 0.1}),
    "MiniCPM": (tiny_config("minicpm3", dim_model_base=256, rope_scaling=LONGROPE), {}),
    "MiniCPM as short": (tiny_config("minicpm3", dim_model_base=256), {}),
}  # fmt: skip


def write_both(
    folder: Path, config: dict[str, Any], keys: dict[str, Any] | None = None, dtype: str = "float32", kind: str = "F32"
) -> tuple[Path, Path]:
    """The same model as a folder of Hugging Face and as a GGUF file."""
    tensors = write_checkpoint(folder / "hf", config, dtype=dtype)
    path = folder / "model.gguf"
    write_gguf(path, keys_of(config) | (keys or {}), gguf_tensors(config, tensors), kind, architecture_of(config))
    return folder / "hf", path


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "F32"), ("bfloat16", "BF16"), ("float16", "F16")])
@pytest.mark.parametrize("name", CONFIGS)
def test_same_config_and_bits_as_the_safetensors(name: str, dtype: str, kind: str, tmp_path: Path) -> None:
    config, keys = CONFIGS[name]
    ours, theirs = (Checkpoint.open(path) for path in write_both(tmp_path, config, keys, dtype, kind))
    assert theirs.config.to_dict() | {"model_type": ours.config.model_type} == ours.config.to_dict()
    assert [note for note in theirs.notes if note not in ours.notes] == ["the file has no tokenizer"]
    assert theirs.shapes == ours.shapes
    for tensor in ours.shapes:
        np.testing.assert_array_equal(theirs.read(tensor).view(np.uint32), ours.read(tensor).view(np.uint32), tensor)


def test_what_is_read_of_indexers(tmp_path: Path) -> None:
    """Also that a GLM model of a long context whose file does not say it has some that choose for others."""
    glm = tiny_config("glm_moe_dsa", first_k_dense_replace=1, mlp_layer_types=..., num_hidden_layers=7)
    path = write_both(tmp_path, glm)[1]
    sizes = ("index_topk", "index_n_heads", "index_head_dim")
    assert [gguf.open_model(path).values[name] for name in sizes] == [glm[name] for name in sizes]
    assert "indexer_types" not in gguf.open_model(path).values
    path = write_both(tmp_path, glm, {"glm-dsa.context_length": 1 << 20})[1]
    types = gguf.open_model(path).values["indexer_types"]
    assert types == ["full", "full", "full", "shared", "shared", "shared", "full"]


def test_how_queries_of_mistral_grow_is_as_published_where_the_file_does_not_say(tmp_path: Path) -> None:
    config = tiny_config("mistral4", rope_parameters=MISTRAL_ROPE)
    ours, theirs = (Checkpoint.open(path) for path in write_both(tmp_path, config, yarn_keys("mistral4", 0.1)))
    assert theirs.config.query_scales == ours.config.query_scales
    assert "no attention.temperature_scale" in theirs.notes[0]
    plain = Checkpoint.open(write_both(tmp_path, config)[1])
    assert (plain.config.rope_scaling, plain.config.query_scales) == (None, ())


FACTORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "one missing": ({"rope_factors_long.weight": None}, ConfigValueError, "long_factor"),
    "too many": ({"rope_factors_long.weight": np.ones(5)}, TensorShapeError, "rope_factors_long"),
    "no numbers": ({"rope_factors_short.weight": np.full(4, np.nan)}, ConfigValueError, "short_factor"),
    "a matrix": ({"rope_factors_short.weight": np.ones((2, 2))}, TensorShapeError, "rope_factors_short"),
}


@pytest.mark.parametrize("name", FACTORS)
def test_divisors_of_frequencies_that_cannot_be(name: str, tmp_path: Path) -> None:
    changes, error, reason = FACTORS[name]
    config = tiny_config("minicpm3", rope_scaling=LONGROPE)
    tensors = gguf_tensors(config, random_tensors(config)) | changes
    given = {name: value for name, value in tensors.items() if value is not None}
    write_gguf(tmp_path / "model.gguf", keys_of(config), given, architecture="minicpm3")
    with pytest.raises(error, match=reason):
        Checkpoint.open(tmp_path / "model.gguf")


def test_kv_b_in_one_as_older_files_have_it(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = random_tensors(config)
    keys = keys_of(config) | {
        "deepseek2.attention.key_length": 24, "deepseek2.attention.value_length": 16,
        "deepseek2.attention.key_length_mla": None, "deepseek2.attention.value_length_mla": None,
        "deepseek2.attention.head_count_kv": 4,
    }  # fmt: skip
    stored = {name: value for name, value in gguf_tensors(config, tensors).items() if "_b.weight" not in name}
    stored |= {name: value for name, value in gguf_tensors(config, tensors).items() if "attn_q_b" in name}
    for layer in range(3):
        stored[f"blk.{layer}.attn_kv_b.weight"] = tensors[f"model.layers.{layer}.self_attn.kv_b_proj.weight"]
    write_gguf(tmp_path / "model.gguf", keys, stored)
    found = Checkpoint.open(tmp_path / "model.gguf")
    assert (found.config.qk_nope_head_dim, found.config.v_head_dim) == (16, 16)
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    np.testing.assert_array_equal(found.read(name), tensors[name])


def test_gate_and_up_of_experts_in_one(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = random_tensors(config)
    stored = gguf_tensors(config, tensors)
    for layer in (1, 2):
        halves = [stored.pop(f"blk.{layer}.ffn_{part}_exps.weight") for part in ("gate", "up")]
        stored[f"blk.{layer}.ffn_gate_up_exps.weight"] = np.concatenate(halves, axis=1)
    write_gguf(tmp_path / "model.gguf", keys_of(config), stored)
    found = Checkpoint.open(tmp_path / "model.gguf").part("model.layers.2.mlp.experts.*.up_proj.weight", 5)
    np.testing.assert_array_equal(found, tensors["model.layers.2.mlp.experts.5.up_proj.weight"])


KEYS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "an unknown key": ({"deepseek2.attention.temperature_scale": 0.1}, UnsupportedConfigError, "temperature_scale"),
    "queries that grow at another length than positions": (
        {**yarn_keys("deepseek2", 0.1), "deepseek2.attention.temperature_scale": 0.1,
         "deepseek2.attention.temperature_length": 64}, UnsupportedConfigError, "temperature_length"),
    "no layers told": ({"deepseek2.block_count": None}, MissingConfigKeyError, "deepseek2.block_count"),
    "layers are a text": ({"deepseek2.block_count": "3"}, ConfigValueError, "'deepseek2.block_count' is|an integer"),
    "layers are true": ({"deepseek2.block_count": True}, ConfigValueError, "an integer"),
    "2^31 layers": ({"deepseek2.block_count": 2**31}, ConfigValueError, "num_hidden_layers"),
    "no head": ({"deepseek2.attention.head_count": 0}, ConfigValueError, "num_attention_heads"),
    "grouped heads": ({"deepseek2.attention.head_count_kv": 2}, UnsupportedConfigError, "head_count_kv"),
    "another router": ({"deepseek2.expert_gating_func": 4}, UnsupportedConfigError, "expert_gating_func"),
    "linear scaling": ({"deepseek2.rope.scaling.type": "linear"}, UnsupportedConfigError, "linear"),
    "YaRN without a factor": ({"deepseek2.rope.scaling.type": "yarn"}, MissingConfigKeyError, "factor"),
    "eps not a number": ({"deepseek2.attention.layer_norm_rms_epsilon": float("nan")}, ConfigValueError, "a finite"),
    "experts per layer": ({"deepseek2.expert_feed_forward_length": [32, 32]}, ConfigValueError, "a list of 2"),
    "more experts": ({"deepseek2.expert_count": 12}, TensorShapeError, "shape|expected"),
}  # fmt: skip


def test_layers_that_are_only_claimed_cost_nothing(tmp_path: Path) -> None:
    config = tiny_config("glm_moe_dsa", first_k_dense_replace=1, mlp_layer_types=..., num_hidden_layers=3)
    path = write_both(tmp_path, config, {"glm-dsa.context_length": 1 << 20, "glm-dsa.block_count": 2**32 - 1})[1]
    started = time.thread_time()
    with pytest.raises(ConfigValueError, match="num_hidden_layers"):
        Checkpoint.open(path)
    assert time.thread_time() - started < 1


@pytest.mark.parametrize("name", KEYS)
def test_keys_that_cannot_be(name: str, tmp_path: Path) -> None:
    keys, error, reason = KEYS[name]
    config = tiny_config()
    write_gguf(tmp_path / "model.gguf", keys_of(config) | keys, gguf_tensors(config, random_tensors(config)))
    with pytest.raises(error, match=reason):
        Checkpoint.open(tmp_path / "model.gguf")


def test_tensors_that_cannot_be(tmp_path: Path) -> None:
    path, config = tmp_path / "model.gguf", tiny_config()
    tensors = gguf_tensors(config, random_tensors(config))
    half = {name: value for name, value in tensors.items() if name != "blk.1.attn_v_b.weight"}
    turned = tensors | {"blk.1.attn_k_b.weight": tensors["blk.1.attn_v_b.weight"].copy()}
    codes = {name: value for name, value in tensors.items() if name != "output_norm.weight"}
    codes["output_norm.weight"] = np.zeros((1, 68), np.uint8)
    for found, error, reason in (
        (half, MissingTensorError, "layers.1.self_attn.kv_b_proj.weight"),
        (turned, TensorShapeError, "layers.1.self_attn.k_b_proj.weight"),
        (tensors | {"rope_freqs.weight": np.ones(4)}, UnexpectedTensorError, "rope_freqs.weight"),
        (codes, TensorDtypeError, "model.norm.weight"),
    ):
        write_gguf(path, keys_of(config), found, "Q8_0" if found is codes else "F32")
        with pytest.raises(error, match=reason):
            Checkpoint.open(path)


def test_other_architectures_are_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", {}, {"w": np.zeros(32)}, architecture="llama")
    with pytest.raises(GgufModelError, match="'llama'") as caught:
        Checkpoint.open(tmp_path / "model.gguf")
    assert "known: deepseek2, deepseek32, glm-dsa, mistral4, minicpm3" in str(caught.value)


def test_no_groups_of_experts_is_said(tmp_path: Path) -> None:
    keys = {"deepseek2.expert_group_count": None, "deepseek2.expert_group_used_count": None}
    keys |= {"deepseek2.expert_gating_func": None}
    found = Checkpoint.open(write_both(tmp_path, tiny_config(), keys)[1])
    assert "no expert_group_count" in found.notes[0]
    assert (found.config.n_group, found.config.scoring_func) == (1, "sigmoid")


def write_split(folder: Path, config: dict[str, Any], **further: int) -> list[Path]:
    """A model in three parts."""
    tensors = list(gguf_tensors(config, random_tensors(config)).items())
    paths = [folder / f"m-{number + 1:05}-of-00003.gguf" for number in range(3)]
    for number, path in enumerate(paths):
        keys = {"split.no": number, "split.count": 3, "split.tensors.count": len(tensors), **further}
        part = dict(tensors[number::3])
        write_gguf(path, (keys_of(config) if number == 0 else {}) | keys, part)
    return paths


def test_split_model_by_any_of_its_parts(tmp_path: Path) -> None:
    config = tiny_config()
    paths = write_split(tmp_path, config)
    tensors = random_tensors(config)
    for path in paths:
        found = Checkpoint.open(path)
        assert list(found.files()) == [each.name for each in paths]
        np.testing.assert_array_equal(found.read("model.norm.weight"), tensors["model.norm.weight"])
        assert default_output(path, CompileOptions()) == Path("artifacts/m-int8-x86")


def test_split_model_with_wrong_parts(tmp_path: Path) -> None:
    config = tiny_config()
    paths = write_split(tmp_path, config)
    whole = paths[2].read_bytes()
    paths[2].unlink()
    with pytest.raises(GgufSplitError, match=r"1 parts are missing, such as m-00003-of-00003\.gguf"):
        Checkpoint.open(paths[0])
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(GgufSplitError, match="it says that it is number 2 of 3"):
        Checkpoint.open(paths[0])
    paths[2].write_bytes(whole)
    renamed = paths[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(GgufSplitError, match="number 1 of 3"):
        Checkpoint.open(renamed)
    write_split(tmp_path, config, **{"split.tensors.count": 7})
    with pytest.raises(GgufSplitError, match="should have 7 tensors"):
        Checkpoint.open(paths[0])


def test_a_tensor_that_two_parts_have_is_named(tmp_path: Path) -> None:
    for number in range(2):
        path, keys = tmp_path / f"m-{number + 1:05}-of-00002.gguf", {"split.no": number, "split.count": 2}
        write_gguf(path, keys, {"od\0d": np.ones(4), f"own {number}": np.ones(4)})
    with pytest.raises(GgufSplitError, match=r"m-00002-of-00002\.gguf is .*: 'od\\x00d' is in another part too"):
        Checkpoint.open(path)


def test_folder_with_a_gguf_file_is_told_to_give_the_file(tmp_path: Path) -> None:
    _, path = write_both(tmp_path, tiny_config())
    with pytest.raises(GgufError, match=r"holds 'model\.gguf', but no safetensors") as caught:
        Checkpoint.open(path.parent)
    assert "MODEL.gguf" in caught.value.hint


def test_plan_inspect_and_provenance_need_no_folder(tmp_path: Path) -> None:
    config = tiny_config()
    folder, path = write_both(tmp_path, config, kind="Q8_0")
    options = CompileOptions(kept=None)
    report = plan_checkpoint(path, options)
    assert any(note.startswith("codes are kept, in int8-g32") for note in report.notes)
    assert report.weight_bytes < plan_checkpoint(folder, CompileOptions(quant="float32")).weight_bytes
    result = CliRunner().invoke(inspect_command, [str(path), "--json"])
    shown = json.loads(result.output)
    assert shown["kind"] == "checkpoint"
    assert shown["files"] == {"model.gguf": path.stat().st_size}
    assert set(Checkpoint.open(path).provenance()["files"]) == {"model.gguf"}


def test_a_folder_with_such_a_name_is_a_folder(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "folder.gguf", tiny_config(num_hidden_layers=2))
    result = CliRunner().invoke(inspect_command, [str(tmp_path / "folder.gguf"), "--json"])
    assert set(json.loads(result.output)["files"]) == {"model.safetensors"}
    assert default_output(tmp_path / "folder.gguf", CompileOptions()) == Path("artifacts/folder.gguf-int8-x86")


def test_text_files_reach_the_artifact(tmp_path: Path) -> None:
    config = tiny_config()
    tokens = [f"<{number}>" for number in range(93)] + ["a", "b", "ab"]
    keys = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "deepseek-v3", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["a b"], "general.sampling.temp": 0.6,
    }  # fmt: skip
    _, path = write_both(tmp_path, config, keys)
    checkpoint = Checkpoint.open(path)
    assert text_files.check(path, checkpoint.config) == ()
    (tmp_path / "out").mkdir()
    sides.write_sides(path, tmp_path / "out")
    names = {each.name for each in (tmp_path / "out").iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert text_files.tokenizer_of(path).encode_plain("abba") == [95, 94, 93]
