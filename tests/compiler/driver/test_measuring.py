"""Figures of artifacts where they are compiled: which kernels, which reference, and what goes into the manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c import targets
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.driver import measuring, pipeline
from dsv3c.compiler.errors import BadOptionError, NoLocalTargetError
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.devices.device import Placement
from dsv3c.runtime.errors import (
    ArtifactMissing,
    IsaNotSupported,
    TextFileInvalid,
    TextTooShort,
    TokenizerMissing,
    WrongMachine,
)
from dsv3c.runtime.measure.divergence import Estimate
from dsv3c.runtime.measure.quality import Quality, Report, evaluate
from dsv3c.runtime.measure.windows import Settings
from tests.compiler.driver.fake_target import FakeTarget
from tests.conformance import runs
from tests.conformance.runs import Batch, GraphStepper


class Measured:
    """Stands for the measurement: keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: tuple[Any, ...] = ()

    def __call__(self, out: Path, texts: Any, settings: Any, placement: Any, against: Any = None, progress: Any = None,
                 against_name: str | None = None) -> Report:  # fmt: skip
        Artifact.open(out)
        self.asked = (out, texts, against, against_name)
        quality = Quality("words.txt", "0" * 64, 100, 1, Estimate(3.0, 0.1), None)
        return Report("cpu", 512, settings, against_name, (quality,))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, fake_target: FakeTarget) -> Measured:
    stand_in = Measured()
    monkeypatch.setattr(measuring, "evaluate", stand_in)
    monkeypatch.setattr(measuring, "local_target", lambda: "x86")
    monkeypatch.setattr(measuring, "require_machine", lambda target: None)
    return stand_in


def test_perplexity_of_an_artifact_is_that_of_numpy(
    bundled_artifact: Callable[..., Path], bundled_model: Path, tmp_path: Path
) -> None:
    words = (bundled_model / "eval.txt").read_text(encoding="utf-8")[:200]
    (tmp_path / "text.txt").write_text(words, encoding="utf-8")
    (found,) = evaluate(bundled_artifact("float32"), [tmp_path / "text.txt"], Settings(32), Placement()).texts
    from tokenizers import Tokenizer

    ids = np.array(Tokenizer.from_file(str(bundled_model / "tokenizer.json")).encode(words).ids, np.int32)
    assert found.tokens == ids.size - 1  # it begins with the BOS
    checkpoint = Checkpoint.open(bundled_model)
    stepper = GraphStepper(runs.traced(checkpoint), checkpoint.read, pages=2)
    expected = []
    for start in range(0, ids.size - 1, 32):
        part = ids[start : start + 33]
        places = np.arange(part.size - 1, dtype=np.int32)
        logits = stepper.step(Batch(part[:-1], places, np.zeros_like(places), np.arange(2, dtype=np.int32)[None]))
        weights = np.exp(logits.astype(np.float64))
        expected.append(-np.log(weights[places, part[1:]] / weights.sum(axis=1)))
    assert found.nll.value == pytest.approx(np.concatenate(expected).mean(), rel=1e-5)


def test_the_local_target_builds_one_level_that_runs_here() -> None:
    target = targets.configured(measuring.local_target())
    assert target.name in ("x86", "arm")
    assert len(target.levels()) == 1


def test_the_level_that_the_runtime_is_told_to_use_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "machine", lambda: "x86_64")
    requires = {level.name: level.requires for level in targets.get("x86").levels()}
    monkeypatch.setattr(measuring, "cpu_flags", lambda: frozenset(requires["x86-64-v4"]))
    assert measuring.local_target() == "x86:levels=x86-64-v4"
    monkeypatch.setenv("DSV3C_ISA", "x86-64-v3")
    assert measuring.local_target() == "x86:levels=x86-64-v3"


def test_a_machine_without_a_target_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "machine", lambda: "riscv64")
    with pytest.raises(NoLocalTargetError, match="no target is for riscv64"):
        measuring.local_target()
    monkeypatch.setattr(measuring, "machine", lambda: "x86_64")
    monkeypatch.setattr(measuring, "cpu_flags", frozenset)
    with pytest.raises(NoLocalTargetError, match="this CPU runs none"):
        measuring.local_target()


def test_the_figures_go_into_the_manifest(readable: Path, text: Path, tmp_path: Path, measured: Measured) -> None:
    out = tmp_path / "out"
    report = pipeline.compile_checkpoint(readable, out, CompileOptions(measure=text, max_tokens=32))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["quality"] == report.manifest["quality"]
    assert manifest["quality"]["texts"][0]["nll"] == 3.0
    assert not {"measure", "measure_against"} & manifest["options"].keys()
    assert measured.asked[1:] == ([text], None, None)
    Artifact.open(out)


def test_a_checkpoint_to_compare_with_is_compiled_to_float32(
    readable: Path, text: Path, tmp_path: Path, measured: Measured
) -> None:
    options = CompileOptions(measure=text, measure_against=readable, max_tokens=32)
    report = pipeline.compile_checkpoint(readable, tmp_path / "out", options)
    _, _, against, name = measured.asked
    assert name == report.manifest["quality"]["against"] == "tiny in float32"
    assert against.name == "tiny-float32" and not against.exists()


def test_an_artifact_to_compare_with_is_taken_as_it_is(
    readable: Path, text: Path, tmp_path: Path, measured: Measured
) -> None:
    other = tmp_path / "other"
    pipeline.compile_checkpoint(readable, other, CompileOptions(max_tokens=32))
    options = CompileOptions(measure=text, measure_against=other, max_tokens=32)
    pipeline.compile_checkpoint(readable, tmp_path / "out", options)
    assert measured.asked[2:] == (other, "other")


def test_nothing_is_left_of_what_cannot_be_measured(
    readable: Path, text: Path, tmp_path: Path, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any, **named: Any) -> Report:
        raise TokenizerMissing(what="this")

    monkeypatch.setattr(measuring, "evaluate", failing)
    with pytest.raises(TokenizerMissing):
        pipeline.compile_checkpoint(readable, tmp_path / "out", CompileOptions(measure=text, max_tokens=32))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "words.txt"]


def test_what_cannot_be_measured_is_told_before_any_work(
    readable: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty, short = tmp_path / "empty.txt", tmp_path / "short.txt"
    empty.write_text("")
    short.write_text("Once upon a time")
    family, elsewhere = ("x86", "arm") if measuring.machine() == "x86_64" else ("arm", "x86")
    with pytest.raises(TextFileInvalid):
        measuring.check(readable, CompileOptions(measure=empty))
    with pytest.raises(TextTooShort):
        measuring.check(readable, CompileOptions(measure=short))
    with pytest.raises(WrongMachine):
        measuring.check(readable, CompileOptions(measure=text, target=elsewhere))
    beyond = f"{family}:levels={targets.get(family).levels()[-1].name}"
    monkeypatch.setattr(measuring, "cpu_flags", frozenset)
    with pytest.raises(IsaNotSupported):
        measuring.check(readable, CompileOptions(measure=text, target=beyond))
    monkeypatch.undo()
    with pytest.raises(ArtifactMissing):
        measuring.check(readable, CompileOptions(measure=text, measure_against=tmp_path / "none"))
    (readable / "tokenizer.json").unlink()
    with pytest.raises(TokenizerMissing, match="measuring needs one"):
        measuring.check(readable, CompileOptions(measure=text))
    measuring.check(readable, CompileOptions())


def test_a_reference_without_a_text_is_refused(readable: Path) -> None:
    with pytest.raises(BadOptionError, match="expected none where there is no text"):
        CompileOptions(measure_against=readable)
