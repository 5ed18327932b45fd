"""What is generated for a small model and a small kernel, to be read: plan.json, native tables, TIR."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dsv3c.compiler.driver import pipeline
from dsv3c.compiler.options import CompileOptions
from dsv3c.targets.cpu.kernels import build
from dsv3c.targets.cpu.native.chat_pieces import ChatPieces
from dsv3c.targets.cpu.native.tables import plan_source
from dsv3c.targets.x86 import levels
from tests.checkpoints import tiny_config, write_checkpoint
from tests.conftest import Golden
from tests.targets.cpu.unbuilt import unbuilt
from tests.targets.small_kernel import SMALL


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer with experts, for two levels, whose libraries are not built."""
    folder = tmp_path_factory.mktemp("generated")
    config = tiny_config(num_hidden_layers=1, first_k_dense_replace=0, vocab_size=32, max_position_embeddings=64)
    write_checkpoint(folder / "small", config)

    with pytest.MonkeyPatch.context() as patch, unbuilt():
        patch.setattr(levels, "LEVELS", levels.LEVELS[:2])
        options = CompileOptions(quant="int4-g32", max_tokens=8, max_rows=4, max_sequences=2)
        pipeline.compile_checkpoint(folder / "small", folder / "out", options)
    return folder / "out"


def spread(value: Any, indent: str = "") -> str:
    """JSON, with a line for what holds neither objects nor lists, and for each call of a kernel."""
    items = value.values() if isinstance(value, Mapping) else value
    call = isinstance(value, list) and value and isinstance(value[0], str)
    if call or not isinstance(value, (Mapping, list)) or not any(isinstance(item, (Mapping, list)) for item in items):
        return json.dumps(value)
    inner, (first, last) = indent + "  ", "{}" if isinstance(value, Mapping) else "[]"
    keys = [f"{json.dumps(key)}: " for key in value] if isinstance(value, Mapping) else [""] * len(value)
    rows = (f"{inner}{key}{spread(item, inner)}" for key, item in zip(keys, items, strict=True))
    return ",\n".join([f"{first}\n{next(rows)}", *rows]) + f"\n{indent}{last}"


def test_the_plan_of_a_small_model(artifact: Path, golden: Golden) -> None:
    plan = json.loads((artifact / "plan.json").read_text(encoding="utf-8"))
    text = spread(plan)
    assert json.loads(text) == plan
    golden.check(text)


def test_the_native_tables_of_a_small_model(artifact: Path, golden: Golden) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    golden.check(plan_source(artifact, manifest, ChatPieces("none")))


def test_a_small_kernel_in_tir(golden: Golden) -> None:
    golden.check(build(SMALL, levels.LEVELS[0]).script())
