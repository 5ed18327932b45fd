"""What is wrong with a checkpoint that is quantised is said in one error that names it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.compiler.checkpoint import Checkpoint, quantised
from dsv3c.compiler.checkpoint.errors import (
    ConfigValueError,
    GroupIndexError,
    LeftOutError,
    MissingConfigKeyError,
    MissingScaleError,
    MissingTensorError,
    NonFiniteWeightError,
    ScaleValueError,
    TensorDtypeError,
    TensorShapeError,
    UnexpectedTensorError,
    UnknownQuantisationError,
    UnsupportedConfigError,
    ZeroPointError,
)
from dsv3c.compiler.checkpoint.safetensors import SafetensorsFile
from dsv3c.compiler.checkpoint.stored import StoredTensor
from dsv3c.compiler.driver import pipeline
from dsv3c.compiler.errors import CheckpointError
from dsv3c.compiler.options import CompileOptions
from tests import quantised as foreign
from tests.checkpoints import write_safetensors
from tests.quantised import INTEGERS, Written, awq_config, gptq_config, group_of, packed_config

PATH = Path("config.json")
GROUP = group_of(4, 32)["config_groups"]["group_0"]
BAD_CONFIGS: dict[str, tuple[Any, type[CheckpointError], str]] = {
    "no object": ("gptq", ConfigValueError, "an object"),
    "no method": ({"bits": 4}, UnknownQuantisationError, "fp8, gptq, awq, compressed-tensors, mxfp4"),
    "unknown method": ({"quant_method": "hqq"}, UnknownQuantisationError, "'hqq'.*\n.*known: fp8, gptq, awq"),
    "method no string": ({"quant_method": ["gptq"]}, UnknownQuantisationError, "gptq"),
    "gptq without bits": ({"quant_method": "gptq", "group_size": 32}, MissingConfigKeyError, "_config.bits"),
    "gptq of 5 bits": (gptq_config(5, 32), ConfigValueError, "bits is 5, expected one of 2, 3, 4, 8"),
    "gptq of many bits": (gptq_config(400, 32), ConfigValueError, "bits"),
    "gptq of half bits": (gptq_config(4.5, 32), ConfigValueError, "bits"),  # type: ignore[arg-type]
    "gptq in groups of 0": (gptq_config(4, 32, group_size=0), ConfigValueError, "group_size"),
    "gptq in groups of -2": (gptq_config(4, 32, group_size=-2), ConfigValueError, "group_size"),
    "gptq for one kernel": (gptq_config(4, 32, checkpoint_format="marlin"), ConfigValueError, "gptq, gptq_v2"),
    "gptq with mixed bits": (gptq_config(4, 32, dynamic={"+:.*up": {"bits": 8}}), UnsupportedConfigError, "same bits"),
    "awq of 8 bits": (awq_config(bits=8), ConfigValueError, "bits is 8, expected one of 4"),
    "awq for one kernel": (awq_config(version="gemv"), UnsupportedConfigError, "known is gemm"),
    "awq leaves out a number": (awq_config(modules_to_not_convert=[1]), ConfigValueError, "names of modules"),
    "unknown format": ({**group_of(4, 32), "format": "nvfp4-pack-quantized"}, UnsupportedConfigError, "pack-quantized"),
    "no groups": ({**packed_config(4, 32), "config_groups": {}}, ConfigValueError, "config_groups"),
    "a group without weights": (
        {**packed_config(4, 32), "config_groups": {"a": {"weights": None}}}, ConfigValueError, "config_groups"
    ),
    "group of 0": ({**packed_config(4, 32), **group_of(4, 32, group_size=0)}, ConfigValueError, "group_size"),
    "9 bits": (packed_config(9, 32), ConfigValueError, "num_bits is 9"),
    "6 bits of floats": (group_of(6, 32, type="float"), ConfigValueError, "num_bits is 6, expected one of 4, 8"),
    "block of one size": (group_of(8, 0, strategy="block", block_structure=[8]), ConfigValueError, "block_structure"),
    "sparse": (
        {**packed_config(4, 32), "sparsity_config": {"format": "sparse-24-bitmask"}}, UnsupportedConfigError, "sparsity"
    ),
    "rotated": ({**packed_config(4, 32), "transform_config": {"a": {}}}, UnsupportedConfigError, "transform_config"),
    "unknown scales": (
        {"quant_method": "fp8", "weight_block_size": [32, 32], "scale_fmt": "ue7m1"}, ConfigValueError, "scale_fmt"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_config_that_cannot_be_is_refused(case: str) -> None:
    value, error, reason = BAD_CONFIGS[case]
    with pytest.raises(error, match=reason) as caught:
        quantised.parse({"quantization_config": value}, PATH)
    assert str(PATH) in str(caught.value)


def test_the_older_key_is_read_too() -> None:
    found = quantised.parse({"compression_config": packed_config(4, 32)}, PATH)
    assert isinstance(found, quantised.CompressedTensors)


O_PROJ = "model.layers.1.self_attn.o_proj"
EXPERT = "model.layers.1.mlp.experts.3.down_proj"
Spoil = Callable[[Written], Any]


def drop(name: str) -> Spoil:
    return lambda written: written.tensors.pop(name)


def put(name: str, change: Callable[[np.ndarray], Any]) -> Spoil:
    return lambda written: written.tensors.update({name: change(written.tensors[name])})


def change(name: str, index: Any, value: Any) -> Spoil:
    def spoil(written: Written) -> None:
        written.tensors[name] = written.tensors[name].copy()
        written.tensors[name][index] = value

    return spoil


def configure(**more: Any) -> Spoil:
    return lambda written: written.config["quantization_config"].update(more)


BAD: dict[str, tuple[str, Spoil, type[CheckpointError], str]] = {
    "no scales": ("gptq", drop(f"{EXPERT}.scales"), MissingScaleError, r"qweight.*no .*experts.3.down_proj.scales"),
    "no zeros": ("gptq", drop(f"{O_PROJ}.qzeros"), MissingScaleError, "no .*o_proj.qzeros"),
    "no codes": ("gptq", drop(f"{O_PROJ}.qweight"), MissingTensorError, "o_proj.weight"),
    "index beyond": (
        "gptq", change(f"{O_PROJ}.g_idx", 5, 2), GroupIndexError, "column 5 into group 2, expected one from 0 to 1"
    ),
    "index negative": ("gptq", change(f"{EXPERT}.g_idx", 7, -1), GroupIndexError, "experts.3.down_proj.g_idx"),
    "index short": ("gptq", put(f"{O_PROJ}.g_idx", lambda g: g[:-1]), TensorShapeError, r"\[63\], expected \[64\]"),
    "other bits": ("gptq", configure(bits=8), TensorShapeError, r"qweight.*expected"),
    "other groups": ("gptq", configure(group_size=64), TensorShapeError, r"(qzeros|scales)"),
    "NaN scale": ("gptq", change(f"{O_PROJ}.scales", (1, 3), np.nan), ScaleValueError, r"nan at \[1, 3\]"),
    "infinite scale": ("gptq", change(f"{O_PROJ}.scales", (0, 3), np.inf), ScaleValueError, "inf"),
    "zero scale": ("awq", change(f"{O_PROJ}.scales", (0, 3), 0), ScaleValueError, "above 0"),
    "zero point beyond": ("gptq", change(f"{O_PROJ}.qzeros", (1, 2), 0xF), ZeroPointError, r"16 at \[1, 16\]"),
    "head left out": (
        "gptq",
        lambda written: written.tensors.update(
            foreign.gptq("lm_head", foreign.integers(np.ones((96, 64), np.float32), 4), 4)
        ),
        LeftOutError, "lm_head is false",
    ),
    "left out by a pattern": ("gptq", configure(dynamic={"-:.*o_proj": {}}), LeftOutError, "leaves out .*o_proj"),
    "codes as floats": (
        "gptq", put(f"{O_PROJ}.qweight", lambda words: words.astype(np.float32)), TensorDtypeError, "F32, expected I32"
    ),
    "awq: no scales": ("awq", drop(f"{O_PROJ}.scales"), MissingScaleError, "no .*o_proj.scales"),
    "awq: left out": (
        "awq", configure(modules_to_not_convert=["self_attn.o_proj"]), LeftOutError, "o_proj: self_attn.o_proj"
    ),
    "awq: groups that do not fit": ("awq", configure(group_size=48), TensorShapeError, "qzeros"),
    "packed: no scales": ("packed int4", drop(f"{EXPERT}.weight_scale"), MissingScaleError, "3.down_proj.weight_scale"),
    "packed: no zeros": (
        "packed int4, asymmetric", drop(f"{O_PROJ}.weight_zero_point"), MissingScaleError, "weight_zero_point"
    ),
    "packed: ignored": ("packed int4", configure(ignore=["re:.*self_attn.*"]), LeftOutError, r"re:\.\*self_attn"),
    "packed: other shape": (
        "packed int4", change(f"{O_PROJ}.weight_shape", 0, 63), TensorShapeError, r"\[63, 64\], expected \[64, 64\]"
    ),
    "packed: zero scale": (
        "packed int4", change(f"{O_PROJ}.weight_scale", (2, 1), 0), ScaleValueError, r"0.0 at \[2, 1\]"
    ),
    "packed: groups of another size": ("packed int4", configure(**group_of(4, 64)), TensorShapeError, "weight_scale"),
    "scales that make infinities": (
        "int8", change(f"{O_PROJ}.weight_scale", (2, 0), 3e38), NonFiniteWeightError, r"weight' is inf at \[2, 0\]"
    ),
    "int8: no scales": ("int8", drop(f"{O_PROJ}.weight_scale"), MissingScaleError, "stored as I8"),
    "tensors of no weight": (
        "gptq", lambda written: written.tensors.update({"x.scales": np.ones(1, np.float16)}), UnexpectedTensorError,
        "x.scales",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    known: dict[str, Written] = {}

    def make(case: str) -> Written:
        if case not in known:
            known[case] = foreign.write(tmp_path_factory.mktemp("whole"), INTEGERS[case], num_hidden_layers=2)
        whole = known[case]
        return Written(copy.deepcopy(dict(whole.config)), dict(whole.tensors))

    return make


@pytest.mark.parametrize("case", BAD)
def test_tensors_that_cannot_be_are_refused(case: str, made: Callable[[str], Written], tmp_path: Path) -> None:
    kind, spoil, error, reason = BAD[case]
    written = made(kind)
    spoil(written)
    foreign.save(tmp_path, written)
    with pytest.raises(error, match=reason) as caught:
        source = Checkpoint.open(tmp_path)
        for name in source.shapes:
            source.coded(name)
    assert str(tmp_path) in str(caught.value)


def test_nothing_is_left_of_an_artifact_whose_scales_are_no_numbers(
    made: Callable[[str], Written], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.compiler.driver.fake_target import FakeTarget

    monkeypatch.setattr(pipeline.targets, "get", lambda name: FakeTarget())
    written = made("gptq")
    change(f"{O_PROJ}.scales", (1, 3), np.nan)(written)
    (tmp_path / "model").mkdir()
    foreign.save(tmp_path / "model", written)
    with pytest.raises(ScaleValueError, match=r"o_proj\.scales"):
        pipeline.compile_checkpoint(tmp_path / "model", tmp_path / "out", CompileOptions(kept=None))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


KEYS = st.sampled_from([
    "quant_method", "bits", "group_size", "sym", "desc_act", "checkpoint_format", "dynamic", "version", "zero_point",
    "modules_to_not_convert", "format", "config_groups", "ignore", "weights", "targets", "num_bits", "type", "strategy",
    "symmetric", "actorder", "block_structure", "weight_block_size", "fmt", "scale_fmt", "sparsity_config",
])  # fmt: skip
WORDS = st.sampled_from([
    *quantised.METHODS, "pack-quantized", "float-quantized", "group", "channel", "block", "tensor", "int", "float",
    "gptq_v2", "gemm", "Linear", "re:.*", "re:(a+)+$", "-:(", "e4m3", "ue8m0",
])  # fmt: skip
NUMBERS = st.integers(-(2**65), 2**65) | st.integers(-2, 9) | st.floats()
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip
KNOWN = [gptq_config(4, 32), awq_config(), packed_config(4, 32), packed_config(4, 32, True), {"quant_method": "mxfp4"}]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, StoredTensor]]:
    """One matrix as each of two formats stores it."""
    folder, codes = (
        tmp_path_factory.mktemp("stored"),
        foreign.integers(np.random.default_rng(0).standard_normal((64, 64), np.float32), 4),
    )
    found = []
    for name, tensors in {
        "gptq": foreign.gptq(O_PROJ, codes, 4), "packed": foreign.pack_quantized(O_PROJ, codes, 4, asymmetric=True)
    }.items():  # fmt: skip
        write_safetensors(folder / name, tensors)
        file = SafetensorsFile(folder / name)
        found.append({name: StoredTensor(file, info) for name, info in file.tensors.items()})
    return found


@settings(max_examples=100)
@given(known=st.sampled_from(KNOWN), more=st.dictionaries(KEYS, VALUES, max_size=4), data=st.data())
def test_any_quantization_config_is_read_or_refused(
    known: dict[str, Any], more: dict[str, Any], data: Any, stored: list[dict[str, StoredTensor]]
) -> None:
    config = {**copy.deepcopy(known), **more}
    if isinstance(config.get("config_groups"), dict) and data.draw(st.booleans()):
        group = {**GROUP, "weights": {**GROUP["weights"], **data.draw(st.dictionaries(KEYS, VALUES, max_size=3))}}
        config["config_groups"] = {"a": group}
    try:
        found = quantised.parse({"quantization_config": config}, PATH)
        weight = found.find(f"{O_PROJ}.weight", (64, 64), data.draw(st.sampled_from(stored)))
        assert weight is None or weight.decode().shape == (64, 64)
    except CheckpointError as error:
        assert len(str(error)) < 2000
