"""Sizes before any work. That they equal what compiling then makes is tested with the commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv3c.compiler.driver.size_report import PlanReport, plan_checkpoint
from dsv3c.compiler.errors import BadOptionError
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.devices.cpu import features as cpu_features

LATENT, LAYERS, MTP_LAYERS = 128 + 16, 4, 1


def plan(checkpoint: Path, context: int | None = None, **options: str) -> PlanReport:
    return plan_checkpoint(checkpoint, CompileOptions(**options), context)  # type: ignore[arg-type]


def test_parts_count_the_weights_of_the_checkpoint_once(bundled_model: Path) -> None:
    """Both forms of attention use kv_b; its numbers are still counted once."""
    parts = plan(bundled_model).parts
    kv_b, q_b, o = 8 * (32 + 32) * 128, 8 * (32 + 16) * 128, 256 * 8 * 32
    q_a, kv_a = 128 * 256, LATENT * 256
    assert parts["attention"].weights == LAYERS * (kv_b + q_b + o + q_a + kv_a)
    assert parts["embedding"].weights == parts["head"].weights == 2048 * 256
    assert parts["routed experts"].weights == 3 * 16 * parts["shared experts"].weights // 3


def test_parts_make_up_the_file(bundled_model: Path) -> None:
    report = plan(bundled_model, quant="int4-g32")
    stored = sum(part.nbytes for part in report.parts.values())
    assert stored <= report.weight_bytes < 1.02 * stored, "the rest is the header and alignment"
    assert report.parts["routed experts"].format == "int4-g32"
    # 4 bits and a float16 scale every 32 weights: 4.5 bits; 256 and 128 are whole groups, there is no padding.
    assert 8 * report.parts["routed experts"].nbytes == 4.5 * report.parts["routed experts"].weights


def test_cache_has_one_latent_row_a_layer_and_token(bundled_model: Path) -> None:
    rows = (LAYERS + MTP_LAYERS) * LATENT
    assert plan(bundled_model, context=16).cache_bytes == 16 * rows * 2
    assert plan(bundled_model, context=17).cache_bytes == 32 * rows * 2, "whole pages"
    assert plan(bundled_model, context=16, quant="float32").cache_bytes == 16 * rows * 4
    assert plan(bundled_model).context == 2048, "what the model allows"


def test_a_context_beyond_the_model_is_refused(bundled_model: Path) -> None:
    with pytest.raises(BadOptionError, match="1 to 2048"):
        plan(bundled_model, context=2049)


def test_verdict(bundled_model: Path) -> None:
    report = plan(bundled_model)
    total = report.weight_bytes + report.cache_bytes + report.arena_bytes
    assert report.total_bytes == report.to_dict()["total_bytes"] == total
    assert report.fits is None or report.fits == (total <= report.available_bytes)


def test_this_machines_memory_says_nothing_of_another_one(bundled_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_features, "machine", lambda: "riscv64")
    report = plan(bundled_model, target="x86")
    assert report.available_bytes == 0 and report.fits is None
