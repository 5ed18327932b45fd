"""What a checkpoint's tensors are with adapters merged into them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.options import Lora
from tests.adapters import ATTENTION, PREFIX, Tensors, embedding_factors, factors, merged, write_adapter
from tests.checkpoints import fuse_experts, tiny_config, write_checkpoint, write_safetensors

EXPERTS, SHARED = "model.layers.1.mlp.experts", "model.layers.2.mlp.shared_experts"
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
ALL = (
    *(f"model.layers.{layer}.{part}" for layer in range(3) for part in ATTENTION),
    *(f"model.layers.0.mlp.{part}" for part in PROJECTIONS),
    *(f"{EXPERTS}.{expert}.{part}" for expert in (0, 5) for part in PROJECTIONS),
    *(f"{SHARED}.{part}" for part in PROJECTIONS),
    "model.layers.2.mlp.gate",
    "lm_head",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensors]:
    folder = tmp_path_factory.mktemp("base")
    return folder, write_checkpoint(folder, tiny_config())


def opened(folder: Path, *adapters: Path | Lora) -> Checkpoint:
    return Checkpoint.open(folder, [each if isinstance(each, Lora) else Lora(each) for each in adapters])


def assert_is(checkpoint: Checkpoint, weights: Tensors) -> None:
    """Bit for bit, every tensor."""
    for name in checkpoint.shapes:
        wanted = weights[name] if "*" not in name else [weights[name.replace("*", str(expert))] for expert in range(8)]
        np.testing.assert_array_equal(checkpoint.read(name), wanted, err_msg=name)


def test_every_kind_of_matrix_is_merged_and_no_other_changes(base: tuple[Path, Tensors], tmp_path: Path) -> None:
    folder, weights = base
    tensors = factors(ALL, weights) | embedding_factors("model.embed_tokens", weights)
    checkpoint = opened(folder, write_adapter(tmp_path / "tuned", tensors))
    assert_is(checkpoint, merged(weights, tensors, 2.0))
    assert checkpoint.notes == (
        f"the adapter tuned, which was trained for 'someone/tiny', is merged into {len(ALL) + 1} weights",
    )
    one = checkpoint.part(f"{EXPERTS}.*.up_proj.weight", 5)
    np.testing.assert_array_equal(checkpoint.coded(f"{EXPERTS}.*.up_proj.weight", 5), one)
    assert Checkpoint.open(folder).read("lm_head.weight").tobytes() == weights["lm_head.weight"].tobytes()


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 3}, 0.75),
        ({"lora_alpha": 3, "use_rslora": True}, 1.5),
        ({"alpha_pattern": {"o_proj": 1}}, 0.25),
        ({"alpha_pattern": {r"layers\.\d\.self_attn\.o_proj": 1, "o_proj": 40}}, 0.25),
        ({"alpha_pattern": {"proj": 1, "^o_proj": 1}}, 2.0),  # names end at dots, and begin there
        ({"r": 16, "lora_alpha": 8, "rank_pattern": {"o_proj": 4}}, 2.0),
        ({"r": 16, "use_rslora": True, "rank_pattern": {"layers.1.self_attn.o_proj": 4}}, 4.0),
        ({"fan_in_fan_out": True, "lora_dropout": 0.5, "target_modules": "all-linear"}, 2.0),
        ({"init_lora_weights": "gaussian"}, 2.0),
        ({"loftq_config": {}, "eva_config": None, "layer_replication": None}, 2.0),
    ],
)
def test_the_scale_follows_from_the_config(
    config: dict[str, object], scale: float, base: tuple[Path, Tensors], tmp_path: Path
) -> None:
    folder, weights = base
    tensors = factors(["model.layers.1.self_attn.o_proj"], weights)
    assert_is(opened(folder, write_adapter(tmp_path / "tuned", tensors, **config)), merged(weights, tensors, scale))


@pytest.mark.parametrize("form", ["{}.default{}", "{}.a-name{}"])
def test_names_may_carry_the_adapters_name_and_lack_the_prefix(
    form: str, base: tuple[Path, Tensors], tmp_path: Path
) -> None:
    folder, weights = base
    tensors = factors(["lm_head"], weights) | embedding_factors("model.embed_tokens", weights)
    renamed = {
        form.format(name.removesuffix(".weight"), ".weight" if name.endswith(".weight") else ""): value
        for name, value in tensors.items()
    }
    assert_is(opened(folder, write_adapter(tmp_path / "named", renamed)), merged(weights, tensors, 2.0))
    bare = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
    assert_is(opened(folder, write_adapter(tmp_path / "bare", bare)), merged(weights, tensors, 2.0))


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model.", "model."])
def test_names_may_be_those_of_the_model_around_a_text_model(prefix: str, tmp_path: Path) -> None:
    """As published, as transformers has them in memory, and those of the text model alone."""
    written = write_checkpoint(tmp_path, tiny_config("kimi_k25"))
    weights = {name.removeprefix("language_model."): value for name, value in written.items() if "vision" not in name}
    modules = ("model.layers.1.self_attn.o_proj", f"{EXPERTS}.5.up_proj")
    tensors = factors(modules, weights)
    expected = merged(weights, tensors, 2.0)
    norm = "model.layers.2.input_layernorm.weight"
    tensors[f"{PREFIX}{norm}"] = expected[norm] = np.full(64, 3, np.float32)
    renamed = {name.replace(f"{PREFIX}model.", f"{PREFIX}{prefix}"): value for name, value in tensors.items()}
    ranks = {f"{prefix}layers.1.self_attn.o_proj": 4, "up_proj": 4}
    adapter = write_adapter(tmp_path / "tuned", renamed, rank_pattern=ranks, r=8)
    assert_is(opened(tmp_path, adapter), expected)


def test_names_of_blocks_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path, tiny_config("longcat_flash"))
    tensors = factors(["model.layers.1.self_attn.1.o_proj", "model.layers.0.mlps.0.up_proj"], weights)
    checkpoint, expected = opened(tmp_path, write_adapter(tmp_path / "tuned", tensors)), merged(weights, tensors, 2.0)
    for ours, name in (("3.self_attn.o_proj", "1.self_attn.1.o_proj"), ("0.mlp.up_proj", "0.mlps.0.up_proj")):
        found = checkpoint.read(f"model.layers.{ours}.weight")
        np.testing.assert_array_equal(found, expected[f"model.layers.{name}.weight"])
        assert not np.array_equal(found, weights[f"model.layers.{name}.weight"])


def test_adapters_are_merged_in_order_each_with_its_scale(base: tuple[Path, Tensors], tmp_path: Path) -> None:
    folder, weights = base
    first, second = factors(["lm_head"], weights, seed=3), factors(["lm_head"], weights, rank=2, seed=4)
    write_adapter(tmp_path / "first", first)
    write_adapter(tmp_path / "second", second, r=2)
    checkpoint = opened(folder, Lora(tmp_path / "first", -0.5), tmp_path / "second")
    assert_is(checkpoint, merged(merged(weights, first, -1.0), second, 4.0))
    assert "is merged -0.5 times into 1 weights" in checkpoint.notes[0]


def test_factors_in_half_precision_are_widened(base: tuple[Path, Tensors], tmp_path: Path) -> None:
    folder, weights = base
    tensors = {name: value.astype(np.float16) for name, value in factors(["lm_head"], weights).items()}
    widened = {name: value.astype(np.float32) for name, value in tensors.items()}
    assert_is(opened(folder, write_adapter(tmp_path / "half", tensors)), merged(weights, widened, 2.0))


@pytest.mark.parametrize("form", ["{}.{}", "{}.modules_to_save.{}", "{}.modules_to_save.default.{}"])
def test_saved_modules_take_the_place_of_the_models(form: str, base: tuple[Path, Tensors], tmp_path: Path) -> None:
    folder, weights = base
    names = ("model.norm.weight", "lm_head.weight", f"{EXPERTS}.3.up_proj.weight")
    names += ("model.layers.1.mlp.gate.e_score_correction_bias",)
    whole = {name: weights[name] * np.float32(3) for name in names}
    tensors = {PREFIX + form.format(*name.rsplit(".", 1)): value for name, value in whole.items()}
    tensors |= factors(["lm_head"], weights)  # on top of what was saved
    adapter = write_adapter(tmp_path / "saved", tensors)
    assert_is(opened(folder, adapter), merged({**weights, **whole}, factors(["lm_head"], weights), 2.0))


def test_an_embedding_is_stored_beside_its_factors(base: tuple[Path, Tensors], tmp_path: Path) -> None:
    folder, weights = base
    tensors = embedding_factors("model.embed_tokens", weights)
    saved = {f"{PREFIX}model.embed_tokens.base_layer.weight": weights["model.embed_tokens.weight"]}
    assert_is(opened(folder, write_adapter(tmp_path / "tuned", tensors | saved)), merged(weights, tensors, 2.0))


# --- Stacked experts --------------------------------------------------------------------------------------------------


def stacked_factors(rows: int, columns: int, rank: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(A, B, B @ A of each expert [8, rows, columns]) as PEFT's ParamWrapper has them."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((rank * 8, columns), np.float32) / 8
    b = rng.standard_normal((rows, rank * 8), np.float32) / 8
    return a, b, np.einsum("ore,eri->eoi", b.reshape(rows, rank, 8), a.reshape(8, rank, columns))


@pytest.mark.parametrize("fused", [False, True])
def test_parameters_of_stacked_experts(fused: bool, tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "base", tiny_config())
    if fused:
        write_safetensors(tmp_path / "base" / "model.safetensors", fuse_experts(weights))
    gate_up_a, gate_up_b, gate_up = stacked_factors(64, 64, 2, seed=5)
    down_a, down_b, down = stacked_factors(64, 32, 4, seed=6)
    tensors = {
        f"{PREFIX}{EXPERTS}.base_layer.lora_A.weight": gate_up_a,
        f"{PREFIX}{EXPERTS}.base_layer.lora_B.weight": gate_up_b,
        f"{PREFIX}{EXPERTS}.lora_A.weight": down_a,
        f"{PREFIX}{EXPERTS}.lora_B.weight": down_b,
    }
    patterns = {"rank_pattern": {"gate_up_proj": 2}, "alpha_pattern": {r".*\.experts\.gate_up_proj": 1}}
    checkpoint = opened(tmp_path / "base", write_adapter(tmp_path / "tuned", tensors, **patterns))
    for part, rows in (("gate", slice(0, 32)), ("up", slice(32, 64))):
        stored = np.stack([weights[f"{EXPERTS}.{expert}.{part}_proj.weight"] for expert in range(8)])
        expected = stored + np.float32(0.5) * gate_up[:, rows]
        np.testing.assert_allclose(checkpoint.read(f"{EXPERTS}.*.{part}_proj.weight"), expected, rtol=0, atol=1e-6)
    stored = np.stack([weights[f"{EXPERTS}.{expert}.down_proj.weight"] for expert in range(8)])
    expected = stored + np.float32(2) * down
    np.testing.assert_allclose(checkpoint.read(f"{EXPERTS}.*.down_proj.weight"), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("version", "as_stored"), [("0.17.1", False), ("0.19.0", False), ("0.19.1.dev0", True)])
def test_factors_of_older_peft_lie_the_other_way(version: str, as_stored: bool, tmp_path: Path) -> None:
    """gate_up_proj is [8, 64, 64] here, so that the shapes do not say it; of down_proj [8, 64, 32] they do."""
    weights = write_checkpoint(tmp_path / "base", tiny_config())
    a, b, delta = stacked_factors(64, 64, 4, seed=5)
    tensors = {f"{PREFIX}{EXPERTS}.lora_A.weight": a, f"{PREFIX}{EXPERTS}.lora_B.weight": b}
    adapter = write_adapter(tmp_path / "tuned", tensors, peft_version=version)
    delta = delta if as_stored else delta.transpose(0, 2, 1)
    found = opened(tmp_path / "base", adapter).part(f"{EXPERTS}.*.up_proj.weight", 3)
    expected = weights[f"{EXPERTS}.3.up_proj.weight"] + np.float32(2) * delta[3, 32:]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    a, b, delta = stacked_factors(32, 64, 4, seed=5)
    tensors = {f"{PREFIX}{EXPERTS}.lora_A.weight": a, f"{PREFIX}{EXPERTS}.lora_B.weight": b}
    adapter = write_adapter(tmp_path / "turned", tensors, peft_version=...)
    found = opened(tmp_path / "base", adapter).part(f"{EXPERTS}.*.down_proj.weight", 3)
    expected = weights[f"{EXPERTS}.3.down_proj.weight"] + np.float32(2) * delta[3].T
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_stacked_experts_saved_whole(base: tuple[Path, Tensors], tmp_path: Path) -> None:
    folder, weights = base
    others = {name: value * np.float32(2) if name.startswith(EXPERTS) else value for name, value in weights.items()}
    saved = {PREFIX + name: value for name, value in fuse_experts(others).items() if name.startswith(EXPERTS)}
    assert len(saved) == 2
    assert_is(opened(folder, write_adapter(tmp_path / "saved", saved)), others)


def test_a_parameter_adapted_itself_matches_patterns_with_its_own_name(
    base: tuple[Path, Tensors], tmp_path: Path
) -> None:
    folder, weights = base
    tensors = factors(["model.layers.1.mlp.gate"], weights)
    patterns = {"alpha_pattern": {"gate": 100, "gate.weight": 4}, "target_parameters": ["mlp.gate.weight"]}
    assert_is(opened(folder, write_adapter(tmp_path / "tuned", tensors, **patterns)), merged(weights, tensors, 1.0))


# --- Tied models, quantised checkpoints -------------------------------------------------------------------------------


@pytest.mark.parametrize("ensured", [False, True])
def test_a_tied_head_stays_what_it_was_unless_the_adapter_is_tied_too(ensured: bool, tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "base", tiny_config("youtu"))
    embedding = weights["model.embed_tokens.weight"]
    tensors = embedding_factors("model.embed_tokens", weights)
    adapter = write_adapter(tmp_path / "tuned", tensors, ensure_weight_tying=ensured)
    checkpoint, changed = opened(tmp_path / "base", adapter), merged(weights, tensors, 2.0)["model.embed_tokens.weight"]
    np.testing.assert_array_equal(checkpoint.read("model.embed_tokens.weight"), changed)
    np.testing.assert_array_equal(checkpoint.read("lm_head.weight"), changed if ensured else embedding)
    assert not checkpoint.config.tie_word_embeddings
    assert checkpoint.notes[-1] == "head and embedding are no longer one: an adapter changes them"


def test_a_tied_model_stays_tied_where_neither_changes(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "base", tiny_config("youtu"))
    tensors = factors(["model.layers.0.self_attn.o_proj"], weights)
    checkpoint = opened(tmp_path / "base", write_adapter(tmp_path / "tuned", tensors))
    assert checkpoint.config.tie_word_embeddings and "lm_head.weight" not in checkpoint.shapes
    assert list(checkpoint.shapes) == list(Checkpoint.open(tmp_path / "base").shapes)


def test_what_is_merged_has_no_codes_and_the_rest_keeps_them(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", tiny_config(), dtype="float8_e4m3")
    plain = Checkpoint.open(tmp_path / "base")
    shape, name = (64, 64), "model.layers.1.self_attn.o_proj"
    decoded = {f"{name}.weight": plain.read(f"{name}.weight"), f"{EXPERTS}.2.up_proj.weight": np.empty((32, 64))}
    assert decoded[f"{name}.weight"].shape == shape
    tensors = factors([name, f"{EXPERTS}.2.up_proj"], decoded)
    checkpoint = opened(tmp_path / "base", write_adapter(tmp_path / "tuned", tensors))
    assert plain.coding(f"{name}.weight") is not None and checkpoint.coding(f"{name}.weight") is None
    np.testing.assert_array_equal(checkpoint.coded(f"{name}.weight"), merged(decoded, tensors, 2.0)[f"{name}.weight"])
    other = "model.layers.2.self_attn.o_proj.weight"
    assert checkpoint.coding(other) == plain.coding(other)
    assert checkpoint.coded(other).dtype == plain.coded(other).dtype != np.float32
    said = (
        "2 tensors of the checkpoint are in codes and change with the adapters, so they are decoded and rounded again"
    )
    assert checkpoint.notes[-1] == f"{said}: '{EXPERTS}.*.up_proj.weight', '{name}.weight'"


def test_large_matrices_are_merged_in_pieces(
    base: tuple[Path, Tensors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, weights = base
    tensors = factors(["lm_head"], weights)
    monkeypatch.setattr("dsv3c.compiler.checkpoint.lora.delta._CHUNK", 7 * 64 + 3)
    found = opened(folder, write_adapter(tmp_path / "tuned", tensors)).read("lm_head.weight")
    expected = merged(weights, tensors, 2.0)["lm_head.weight"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=4 * math.ulp(1.0) * 2**29)


def test_hashes_and_files_name_the_adapters(base: tuple[Path, Tensors], tmp_path: Path) -> None:
    folder, weights = base
    adapter = write_adapter(tmp_path / "tuned", factors(["lm_head"], weights))
    checkpoint = opened(folder, adapter, Lora(adapter, 0.5))
    assert checkpoint.files()["lora.2/tuned=0.5/adapter_config.json"] == adapter / "adapter_config.json"
    found = checkpoint.provenance()
    assert found["adapters"] == [{"name": "tuned", "scale": 1.0}, {"name": "tuned", "scale": 0.5}]
    weights_hash = found["files"]["lora.1/tuned/adapter_model.safetensors"]
    assert weights_hash == found["files"]["lora.2/tuned=0.5/adapter_model.safetensors"] and len(weights_hash) == 64
    assert "adapters" not in Checkpoint.open(folder).provenance()
