from __future__ import annotations

from pathlib import Path

import pytest

from dsv3c.compiler.driver import packing, time_cost
from dsv3c.compiler.driver.size_report import plan_checkpoint
from dsv3c.compiler.driver.time_cost import CompileTime
from dsv3c.compiler.options import CompileOptions


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number of a weight takes a microsecond, every byte a nanosecond, on one core."""
    monkeypatch.setattr(time_cost, "_seconds_each", lambda *_: 1e-6)
    monkeypatch.setattr(time_cost, "_hash_seconds", lambda: 1e-9)
    monkeypatch.setattr("os.cpu_count", lambda: 1)


def took(checkpoint: Path, **options: str) -> CompileTime:
    report = plan_checkpoint(checkpoint, CompileOptions(**options))  # type: ignore[arg-type]
    assert report.time is not None
    assert report.to_dict()["time"]["seconds"] == report.time.seconds
    return report.time


@pytest.mark.usefixtures("seconds")
def test_all_weights_are_rounded_and_all_bytes_hashed(bundled_model: Path) -> None:
    found = took(bundled_model)
    parts = plan_checkpoint(bundled_model, CompileOptions()).parts
    weights = 1e-6 * sum(part.weights for part in parts.values())
    assert weights <= found.weights < 1.1 * weights, "kv_b is there in both forms of attention"
    source = (bundled_model / "model.safetensors").stat().st_size
    assert source < 1e9 * found.hashing < 3 * source
    assert found.kernels > 1


@pytest.mark.usefixtures("seconds")
def test_a_target_that_builds_no_kernel_has_none_to_build(bundled_model: Path) -> None:
    assert took(bundled_model, target="onnx").kernels == 0


def test_samples_are_rounded_in_each_format_and_by_the_method(bundled_model: Path) -> None:
    nearest, searched = (took(bundled_model, quant="int4-g32", method=method) for method in ("rtn", "search"))
    assert 0 < nearest.weights < searched.weights
    assert not nearest.calibrates


@pytest.mark.usefixtures("seconds")
def test_weights_that_a_kernel_rounds_take_a_share_of_numpys_time(
    bundled_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_numpy, searched = took(bundled_model).weights, took(bundled_model, method="search").weights
    monkeypatch.setattr(packing, "WORTH", 1)
    assert 0.15 * by_numpy < took(bundled_model).weights < 0.6 * by_numpy, "the embedding stays in floats"
    assert took(bundled_model, method="search").weights == searched, "no kernel searches"
