"""Adapters that cannot be merged: one error each, which says what is wrong and what to do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.checkpoint.errors import (
    ConfigValueError,
    JsonError,
    MissingConfigKeyError,
    NonFiniteWeightError,
    SafetensorsError,
    TensorDtypeError,
    TensorShapeError,
)
from dsv3c.compiler.checkpoint.lora.errors import (
    AdapterPairError,
    AdapterRankError,
    AdapterTargetError,
    AdapterTensorError,
    AdapterUnsupportedError,
    EmptyAdapterError,
    NoAdapterError,
    PickledAdapterError,
)
from dsv3c.compiler.errors import BadOptionError, CheckpointError
from dsv3c.compiler.options import Lora
from tests.adapters import PREFIX, Tensors, adapter_config, factors, write_adapter
from tests.checkpoints import tiny_config, write_checkpoint

MODULE = "model.layers.1.self_attn.o_proj"
A, B = f"{PREFIX}{MODULE}.lora_A.weight", f"{PREFIX}{MODULE}.lora_B.weight"
EXPERTS = "model.layers.1.mlp.experts"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensors]:
    folder = tmp_path_factory.mktemp("base")
    return folder, write_checkpoint(folder, tiny_config())


@pytest.fixture
def good(base: tuple[Path, Tensors]) -> Tensors:
    return factors([MODULE], base[1])


def refused(base: tuple[Path, Tensors], adapter: Path) -> CheckpointError:
    """Already when headers are read, and by one error that names a file of the adapter."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(base[0], [Lora(adapter)])
    assert str(adapter) in str(caught.value)
    return caught.value


def damaged(folder: Path, name: str, content: bytes | None) -> Path:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    return folder


def test_a_folder_without_an_adapter(base: tuple[Path, Tensors], good: Tensors, tmp_path: Path) -> None:
    error = refused(base, tmp_path / "absent")
    assert isinstance(error, NoAdapterError) and "it does not exist" in str(error)
    (tmp_path / "file").touch()
    assert "it is not a folder" in str(refused(base, tmp_path / "file"))
    config = damaged(write_adapter(tmp_path / "no-config", good), "adapter_config.json", None)
    error = refused(base, config)
    assert isinstance(error, NoAdapterError) and "it has no adapter_config.json" in str(error)
    weights = damaged(write_adapter(tmp_path / "no-weights", good), "adapter_model.safetensors", None)
    assert "it has no adapter_model.safetensors" in str(refused(base, weights))
    (weights / "adapter_model.bin").touch()
    assert isinstance(refused(base, weights), PickledAdapterError)


def test_damaged_files(base: tuple[Path, Tensors], good: Tensors, tmp_path: Path) -> None:
    assert isinstance(
        refused(base, damaged(write_adapter(tmp_path / "a", good), "adapter_config.json", b"{")), JsonError
    )
    cut = damaged(write_adapter(tmp_path / "b", good), "adapter_model.safetensors", b"\x00" * 9)
    assert isinstance(refused(base, cut), SafetensorsError)
    assert isinstance(refused(base, write_adapter(tmp_path / "c", {})), EmptyAdapterError)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"peft_type": "LOHA"}, "peft_type = 'LOHA'"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3'"),
        ({"peft_type": ...}, "peft_type = None"),
        ({"use_dora": True}, "use_dora = True"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"bias": "lora_only"}, "bias = 'lora_only'"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights = 'pissa_niter_16'"),
        ({"init_lora_weights": "OLoRA"}, "init_lora_weights = 'OLoRA'"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "init_lora_weights = 'loftq'"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
        ({"alpha_pattern": {r"((\w|\.)+)+x": 1}}, "of the kind that can be matched quickly"),
    ],
)
def test_what_is_more_than_lora(
    config: dict[str, Any], named: str, base: tuple[Path, Tensors], good: Tensors, tmp_path: Path
) -> None:
    error = refused(base, write_adapter(tmp_path / "other", good, **config))
    assert isinstance(error, AdapterUnsupportedError)
    assert named in str(error) and "supported are LoRA of" in str(error)


def test_patterns_cost_no_time(base: tuple[Path, Tensors], good: Tensors, tmp_path: Path) -> None:
    started = time.thread_time()
    write_adapter(tmp_path / "other", good, alpha_pattern={".*" * 40 + "#": 1, "(.|.)" * 40 + "#": 1})
    assert Checkpoint.open(base[0], [Lora(tmp_path / "other")]).adapters
    assert time.thread_time() - started < 2


@pytest.mark.parametrize(
    ("config", "kind", "said"),
    [
        ({"r": 0}, ConfigValueError, "r is 0, expected an integer from 1"),
        ({"r": ...}, MissingConfigKeyError, "'r'"),
        ({"lora_alpha": "8"}, ConfigValueError, "lora_alpha"),
        ({"use_rslora": "yes"}, ConfigValueError, "use_rslora"),
        ({"rank_pattern": {"o_proj": -1}}, ConfigValueError, "rank_pattern.o_proj is -1"),
        ({"rank_pattern": ["o_proj"]}, ConfigValueError, "rank_pattern"),
        ({"alpha_pattern": {"(": 1}}, ConfigValueError, "regular expressions, '(' is none"),
        ({"target_parameters": "experts"}, ConfigValueError, "target_parameters"),
    ],
)
def test_values_of_the_config(
    config: dict[str, Any],
    kind: type[CheckpointError],
    said: str,
    base: tuple[Path, Tensors],
    good: Tensors,
    tmp_path: Path,
) -> None:
    error = refused(base, write_adapter(tmp_path / "wrong", good, **config))
    assert type(error) is kind and said in str(error)


def renamed(tensors: Tensors, before: str, after: str) -> Tensors:
    return {name.replace(before, after): value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (lambda t: {A: t[A]}, AdapterPairError, "without lora_B"),
        (lambda t: {B: t[B]}, AdapterPairError, "without lora_A"),
        (lambda t: {A: t[A][:3], B: t[B][:, :3]}, AdapterRankError, "is of rank 3, adapter_config.json says 4"),
        (lambda t: {A: t[A], B: t[B][:, :3]}, AdapterRankError, "is of rank 3"),
        (lambda t: {A: t[A][:, :-1].copy(), B: t[B]}, TensorShapeError, "has shape [4, 63], expected [4, 64]"),
        (
            lambda t: {A: t[A], B: np.zeros((65, 4), np.float32)},
            TensorShapeError,
            "has shape [65, 4], expected [64, 4]",
        ),
        (lambda t: {A: t[A][0], B: t[B]}, TensorShapeError, "has shape [64], expected [4, 64]"),
        (lambda t: {A: t[A].astype(np.int8), B: t[B]}, TensorDtypeError, "is stored as I8"),
        (lambda t: renamed(t, "o_proj", "v_proj"), AdapterTargetError, "no such matrix"),
        (lambda t: renamed(t, "o_proj", "v_proj"), AdapterTargetError, "the nearest are model.layers."),
        (
            lambda t: renamed(t, "layers.1.", "layers.9."),
            AdapterTargetError,
            "'model.layers.9.self_attn.o_proj.weight'",
        ),
        (lambda t: renamed(t, "self_attn.o_proj", "mlp.experts.8.up_proj"), AdapterTargetError, "experts.8.up_proj"),
        (lambda t: renamed(t, "self_attn.o_proj", "input_layernorm"), AdapterTargetError, "no such matrix"),
        (
            lambda t: {**t, f"{PREFIX}score.weight": t[A]},
            AdapterTargetError,
            "'score.weight', and the model has no such",
        ),
        (lambda t: {**t, f"{PREFIX}model.norm.weight": t[A]}, TensorShapeError, "expected [64]"),
        (lambda t: {**t, f"{PREFIX}x.lora_E": t[A]}, AdapterTensorError, "1 tensors that are neither"),
        (lambda t: {**t, f"{PREFIX}{MODULE}.lora_magnitude_vector": t[A][:, 0]}, AdapterUnsupportedError, "DoRA"),
        (lambda t: {**t, f"{PREFIX}{MODULE}.lora_B.bias": t[B][:, 0]}, AdapterUnsupportedError, "no biases"),
        (
            lambda t: {**t, **renamed(t, ".weight", ".second.weight")},
            AdapterUnsupportedError,
            "an adapter is to be one",
        ),
        (lambda t: renamed(t, "lora_", "lora_embedding_"), TensorShapeError, "expected"),
    ],
)
def test_tensors_that_do_not_belong(
    change: Callable[[Tensors], Tensors],
    kind: type[CheckpointError],
    said: str,
    base: tuple[Path, Tensors],
    tmp_path: Path,
) -> None:
    module = "model.layers.1.self_attn.q_a_proj" if kind is TensorShapeError and said == "expected" else MODULE
    error = refused(base, write_adapter(tmp_path / "wrong", change(factors([module], base[1]))))
    assert type(error) is kind and said in str(error)


def test_stacked_experts_of_other_sizes(base: tuple[Path, Tensors], tmp_path: Path) -> None:
    def stack(a: tuple[int, int], b: tuple[int, int], **config: Any) -> CheckpointError:
        tensors = {
            f"{PREFIX}{EXPERTS}.lora_A.weight": np.zeros(a, np.float32),
            f"{PREFIX}{EXPERTS}.lora_B.weight": np.zeros(b, np.float32),
        }
        return refused(base, write_adapter(tmp_path / "stack", tensors, **config))

    error = stack((32, 63), (64, 32))
    assert isinstance(error, TensorShapeError) and "[…, 64] of gate_up_proj or […, 32] of down_proj" in str(error)
    error = stack((16, 32), (64, 16))
    assert isinstance(error, AdapterRankError) and "is of rank 2" in str(error)
    error = stack((33, 32), (64, 33))
    assert isinstance(error, TensorShapeError) and "[33, 32], expected [32, 32]" in str(error)
    error = stack((32, 64), (64, 32), peft_version=...)
    assert isinstance(error, AdapterUnsupportedError) and "has no peft_version" in str(error)


def test_two_pairs_for_one_stack(base: tuple[Path, Tensors], tmp_path: Path) -> None:
    pair = {"lora_A": np.zeros((32, 32), np.float32), "lora_B": np.zeros((64, 32), np.float32)}
    tensors = {f"{PREFIX}{EXPERTS}{level}.{side}.weight": pair[side] for level in ("", ".base_layer") for side in pair}
    error = refused(base, write_adapter(tmp_path / "twice", tensors))
    assert isinstance(error, AdapterUnsupportedError) and "not the only one for its weight" in str(error)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none(value: float, base: tuple[Path, Tensors], good: Tensors, tmp_path: Path) -> None:
    good[B][3, 1] = value
    checkpoint = Checkpoint.open(base[0], [Lora(write_adapter(tmp_path / "wrong", good))])
    with pytest.raises(
        NonFiniteWeightError, match=r"wrong/adapter_model.safetensors: '.*lora_B.weight' is .* at \[3, 1\]"
    ):
        checkpoint.read(f"{MODULE}.weight")
    checkpoint.read("model.layers.2.self_attn.o_proj.weight")


def test_a_sum_beyond_float32(base: tuple[Path, Tensors], good: Tensors, tmp_path: Path) -> None:
    good[A][:], good[B][:] = 0, 0
    good[A][0, 5], good[B][7, 0] = 1e30, 1e30
    checkpoint = Checkpoint.open(base[0], [Lora(write_adapter(tmp_path / "large", good))])
    with pytest.raises(
        NonFiniteWeightError, match=rf"large/adapter_model.safetensors: '{MODULE}.weight' is inf at \[7, 5\]"
    ):
        checkpoint.read(f"{MODULE}.weight")


def test_a_scale_that_is_no_number() -> None:
    with pytest.raises(BadOptionError, match="finite"):
        Lora(Path("tuned"), float("nan"))


def test_a_config_of_another_kind_is_no_trap(base: tuple[Path, Tensors], good: Tensors, tmp_path: Path) -> None:
    folder = damaged(write_adapter(tmp_path / "list", good), "adapter_config.json", json.dumps([1]).encode())
    assert isinstance(refused(base, folder), JsonError)


CHANGES = {
    "flat": lambda value: value.reshape(-1),
    "turned": lambda value: value.T.copy(),
    "empty": lambda value: value[:0],
    "a number": lambda value: value.reshape(-1)[0],
    "integers": lambda value: value.astype(np.int32),
}
ENDS = (".weight", ".bias", ".default.weight", ".modules_to_save.default.weight", ".base_layer.weight", "", "\n", ".é")
KEYS = st.sampled_from((*adapter_config(), "rank_pattern", "alpha_pattern", "target_parameters", "peft_version"))
TEXTS = st.sampled_from(("", "(", "o_proj", "x"))
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
VALUES = LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(TEXTS, LEAVES, max_size=2)
FACTORS = st.sampled_from((A, B))


@settings(max_examples=100)
@given(
    config=st.dictionaries(KEYS, VALUES, max_size=2),
    changes=st.dictionaries(FACTORS, st.sampled_from(sorted(CHANGES)), max_size=2),
    names=st.dictionaries(FACTORS, st.tuples(st.sampled_from((PREFIX, "")), st.sampled_from(ENDS)), max_size=2),
    layer=st.sampled_from(("1", "01", "9", "", "999999999")),
)
def test_any_adapter_is_merged_or_refused(
    config: dict[str, Any], changes: dict[str, str], names: dict[str, tuple[str, str]], layer: str,
    base: tuple[Path, Tensors],
) -> None:  # fmt: skip
    tensors = {}
    for name, value in factors([MODULE], base[1]).items():
        prefix, end = names.get(name, (PREFIX, ".weight"))
        other = prefix + name.removeprefix(PREFIX).removesuffix(".weight").replace(".1.", f".{layer}.") + end
        tensors[other] = np.asarray(CHANGES[changes[name]](value) if name in changes else value)
    folder = write_adapter(base[0] / "any", tensors, **config)
    try:
        Checkpoint.open(base[0], [Lora(folder)]).read(f"{MODULE}.weight")
    except CheckpointError:
        return
