from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.checkpoint.config import ModelConfig
from dsv3c.compiler.checkpoint.errors import UnsupportedConfigError
from dsv3c.compiler.checkpoint.members import MEMBERS
from tests.checkpoints import tiny_config, write_checkpoint

PATH = Path("model/config.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [("final_logit_softcapping", 30.0), ("sliding_window", 4096), ("mla_use_nope", True), ("qk_norm", True),
     ("residual_multiplier", 0.5), ("swiglu_limit", 7.0)],
)  # fmt: skip
def test_a_key_that_changes_what_is_computed_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(UnsupportedConfigError, match=f"{key} = .* is not supported: it changes what is computed"):
        ModelConfig.from_dict(tiny_config(**{key: value}), PATH)


@pytest.mark.parametrize("model_type", ["deepseek_v3", "deepseek_v2", "minicpm3", "longcat_flash", "mistral4"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("scale_emb", 12), ("scale_depth", 1.4), ("dim_model_base", 256), ("mla_scale_q_lora", True),
     ("mla_scale_kv_lora", True), ("zero_expert_num", 2)],
)  # fmt: skip
def test_what_one_member_computes_by_is_refused_for_others(key: str, value: Any, model_type: str) -> None:
    given = tiny_config(model_type, **{key: value})
    if key in MEMBERS[model_type].keys:
        assert ModelConfig.from_dict(given, PATH) != ModelConfig.from_dict(tiny_config(model_type, **{key: None}), PATH)
        return
    with pytest.raises(UnsupportedConfigError, match=f"{key} = .* is not supported: it changes what is computed"):
        ModelConfig.from_dict(given, PATH)


@pytest.mark.parametrize(
    ("key", "value"),
    [("final_logit_softcapping", None), ("mla_use_nope", False), ("qk_norm", False), ("residual_multiplier", 1.0)],
)
def test_values_that_change_nothing_are_passed_over(key: str, value: Any, tmp_path: Path) -> None:
    assert notes(tmp_path, **{key: value}) == ()


def test_what_is_known_to_be_harmless_is_passed_over(tmp_path: Path) -> None:
    assert notes(tmp_path, torch_dtype="bfloat16", auto_map={}, ep_size=1, use_cache=True, head_dim=64) == ()


def test_what_nobody_knows_is_said(tmp_path: Path) -> None:
    assert notes(tmp_path, fancy_gate=True, another=None) == (
        "config.json: not known here, and passed over: 'fancy_gate'",
    )


def notes(folder: Path, **keys: Any) -> tuple[str, ...]:
    write_checkpoint(folder, tiny_config())
    (folder / "config.json").write_text(json.dumps(tiny_config(**keys)))
    return Checkpoint.open(folder).notes
