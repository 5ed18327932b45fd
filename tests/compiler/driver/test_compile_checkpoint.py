"""compile_checkpoint: from a checkpoint to the folder of an artifact."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.core.target import Emission, Planned
from dsv3c.compiler.driver import contents, pipeline
from dsv3c.compiler.errors import (
    OutputExistsError,
    TokenizerFormatError,
    WrittenWrongError,
    is_fault,
)
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.artifact import plan as stored
from dsv3c.runtime.artifact.plan import Buffer
from dsv3c.runtime.progress import Silent
from tests.checkpoints import tiny_config, write_checkpoint
from tests.compiler.driver.fake_target import FakeTarget


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_checkpoint(folder, tiny_config(num_nextn_predict_layers=1))
    return folder


def test_an_existing_output_is_refused_before_the_checkpoint_is_read(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError):
        pipeline.compile_checkpoint(tmp_path / "no-checkpoint", tmp_path / "out", CompileOptions())


def test_the_default_output_tells_model_format_and_target(tmp_path: Path) -> None:
    options = CompileOptions(quant="int4-g32", target="x86:levels=x86-64-v3")
    assert pipeline.default_output(tmp_path / "some-model", options) == Path("artifacts/some-model-int4-g32-x86")


@pytest.mark.parametrize("out", [None, Path("out")])
def test_headers_are_read_once(
    out: Path | None, tiny: Path, tmp_path: Path, fake_target: FakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    open_checkpoint = Checkpoint.open
    monkeypatch.setattr(Checkpoint, "open", lambda path, lora: (opened.append(path), open_checkpoint(path, lora))[1])
    monkeypatch.chdir(tmp_path)
    report = pipeline.compile_checkpoint(tiny, out, CompileOptions(kept=None))
    assert report.out == (out or Path("artifacts/tiny-int8-x86"))
    assert opened == [tiny]
    with pytest.raises(OutputExistsError):
        pipeline.compile_checkpoint(tiny, out, CompileOptions(kept=None))


def test_a_compilation_writes_the_whole_artifact(tiny: Path, tmp_path: Path, fake_target: FakeTarget) -> None:
    options = CompileOptions(quant="int8", max_tokens=32)
    report = pipeline.compile_checkpoint(tiny, tmp_path / "out", options)
    assert report.out == tmp_path / "out"
    files = sorted(path.relative_to(report.out).as_posix() for path in report.out.rglob("*") if path.is_file())
    assert files == ["kernels/any.so", "manifest.json", "plan.json", "weights.safetensors"]
    manifest = json.loads((report.out / "manifest.json").read_text())
    assert manifest == json.loads(json.dumps(report.manifest)) | {"files": manifest["files"]}
    assert manifest["files"].keys() == set(files) - {"manifest.json"}
    assert manifest["files"]["weights.safetensors"]["size"] == manifest["memory"]["weights_bytes"]
    assert manifest["format_version"] == 2
    assert manifest["model"]["name"] == manifest["source"]["name"] == "tiny"
    assert manifest["model"]["hidden_size"] == 64
    assert manifest["source"]["files"].keys() == {"config.json", "model.safetensors"}
    assert manifest["target"] == {"name": "x86", "levels": [{"name": "any", "requires": [], "file": "kernels/any.so"}]}
    assert manifest["quantization"] == {"weights": "int8", "head": "int8", "embedding": "bfloat16", "cache": "bfloat16"}
    assert manifest["memory"]["cache_bytes_per_token"] == (3 + 1) * 40 * 2
    assert manifest["passes"]["decode"]["fuse-mla"] == 6
    assert manifest["options"]["max_tokens"] == 32
    parts = manifest["weights"]["parts"]
    assert parts.keys() >= {"embedding", "attention", "dense mlp", "routed experts", "shared experts", "head", "mtp"}
    plan = json.loads((report.out / "plan.json").read_text())
    assert plan["bounds"] == {"T": 32, "R": 64, "S": 8, "P": 32}
    assert (plan["version"], plan["page_size"]) == (2, 16)


def test_a_further_form_is_made_from_the_manifest_and_listed_in_it(
    tiny: Path, tmp_path: Path, fake_target: FakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(folder: Path) -> tuple[str, ...]:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        (folder / "form").mkdir()
        (folder / "form" / "model.txt").write_text(manifest["model"]["model_type"], encoding="utf-8")
        return ("a note",)

    emit = fake_target.emit

    def emit_with_form(*arguments: Any) -> Emission:
        return dataclasses.replace(emit(*arguments), extras={"form": write})

    monkeypatch.setattr(fake_target, "emit", emit_with_form)
    report = pipeline.compile_checkpoint(tiny, tmp_path / "out", CompileOptions(emit=("form",)))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert (tmp_path / "out" / "form" / "model.txt").read_text(encoding="utf-8") == "deepseek_v3"
    assert manifest["files"]["form/model.txt"]["size"] == len("deepseek_v3")
    assert "manifest.json" not in manifest["files"]
    assert (report.notes[-1], manifest["notes"][-1]) == ("a note", "a note")


def test_what_an_extra_would_find_wrong_is_found_before_the_work(
    tiny: Path, tmp_path: Path, fake_target: FakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(checkpoint: Path) -> None:
        raise TokenizerFormatError(path=checkpoint, reason="because")

    def no_kernels(*arguments: Any) -> None:
        pytest.fail("the work began")

    emit = fake_target.emit

    def emit_with_form(*arguments: Any) -> Emission:
        extras = {"form": lambda folder: None, "other": lambda folder: None}
        return dataclasses.replace(emit(*arguments), extras=extras, checks={"form": refuse}, write_kernels=no_kernels)

    monkeypatch.setattr(fake_target, "emit", emit_with_form)
    with pytest.raises(TokenizerFormatError, match="because"):
        pipeline.compile_checkpoint(tiny, tmp_path / "out", CompileOptions(emit=("other", "form")))
    assert not (tmp_path / "out").exists()


def test_notes_are_told_before_the_work(tiny: Path, tmp_path: Path, fake_target: FakeTarget) -> None:
    told: list[str] = []

    class Telling(Silent):
        def tell(self, text: str) -> None:
            told.append(text)

    fake_target.fails = True
    with pytest.raises(KeyboardInterrupt):
        pipeline.compile_checkpoint(tiny, tmp_path / "out", CompileOptions(), Telling())
    assert any("token ids only" in note for note in told)
    fake_target.fails = False
    report = pipeline.compile_checkpoint(tiny, tmp_path / "out", CompileOptions(), Telling())
    assert (report.told, report.takes_text) == (len(report.notes), False)


def test_compiling_twice_gives_the_same_bytes(tiny: Path, tmp_path: Path, fake_target: FakeTarget) -> None:
    for name in "ab":
        pipeline.compile_checkpoint(tiny, tmp_path / name, CompileOptions())
    for path in (tmp_path / "a").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_an_interrupted_compilation_leaves_nothing(tiny: Path, tmp_path: Path, fake_target: FakeTarget) -> None:
    fake_target.fails = True
    with pytest.raises(KeyboardInterrupt):
        pipeline.compile_checkpoint(tiny, tmp_path / "out", CompileOptions())
    assert list(tmp_path.iterdir()) == []


WRONG: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "logits has rows of 'T', it must be R": lambda patch: patch.setattr(FakeTarget, "plan", with_a_row_per_token),
    "arena": lambda patch: patch.setattr(stored.Plan, "to_json", without_arena),
    "'lost' is not in weights.safetensors": lambda patch: patch.setattr(FakeTarget, "plan", with_a_lost_weight),
    "manifest.json": lambda patch: patch.setattr(contents, "manifest", lambda *_: {}),
}
TO_JSON, PLAN = stored.Plan.to_json, FakeTarget.plan


def with_a_row_per_token(target: FakeTarget, *arguments: Any) -> Planned:
    planned = PLAN(target, *arguments)
    entry = planned.entries["decode"]
    outputs = {name: dataclasses.replace(output, rows="T") for name, output in entry.outputs.items()}
    return dataclasses.replace(planned, entries={"decode": dataclasses.replace(entry, outputs=outputs)})


def without_arena(plan: stored.Plan) -> dict[str, Any]:
    return TO_JSON(plan) | {"arena_bytes": 0}


def with_a_lost_weight(target: FakeTarget, *arguments: Any) -> Planned:
    planned = PLAN(target, *arguments)
    lost = Buffer("lost", "weight", "int8", 64, tensor="lost")
    return dataclasses.replace(planned, buffers=(*planned.buffers, lost))


@pytest.mark.usefixtures("fake_target")
@pytest.mark.parametrize("says", WRONG)
def test_what_the_runtime_would_not_load_is_a_fault_of_the_compiler_and_not_kept(
    says: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRONG[says](monkeypatch)
    with pytest.raises(WrittenWrongError, match="a mistake in dsv3c") as raised:
        pipeline.compile_checkpoint(tiny, tmp_path / "out", CompileOptions(max_tokens=8))
    assert is_fault(raised.value)
    assert says in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_artifact_does_not_take_the_place_of_a_right_one(
    tiny: Path, tmp_path: Path, fake_target: FakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.compile_checkpoint(tiny, tmp_path / "out", CompileOptions())
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    monkeypatch.setattr(stored.Plan, "to_json", without_arena)
    with pytest.raises(WrittenWrongError):
        pipeline.compile_checkpoint(tiny, tmp_path / "out", CompileOptions(overwrite=True))
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_stopping_at_a_pass_writes_no_artifact(tiny: Path, tmp_path: Path, fake_target: FakeTarget) -> None:
    (tmp_path / "out").mkdir()
    options = CompileOptions(stop_after="fuse-mla")
    report = pipeline.compile_checkpoint(tiny, tmp_path / "out", options)
    assert (report.out, report.manifest) == (None, {})
    assert list((tmp_path / "out").iterdir()) == []


def test_progress_is_told_of_each_stage(tiny: Path, tmp_path: Path, fake_target: FakeTarget) -> None:
    stages: list[tuple[str, int | None]] = []
    done: list[int] = []

    class Told:
        def stage(self, name: str, total: int | None = None) -> None:
            stages.append((name, total))
            done.append(0)

        def advance(self, n: int = 1) -> None:
            done[-1] += n

    pipeline.compile_checkpoint(tiny, tmp_path / "out", CompileOptions(), Told())
    names = [name for name, _ in stages]
    assert names == [
        "reading the checkpoint's headers",
        "running the passes",
        "building kernels",
        "writing weights",
        "hashing",
    ]
    assert [count for (_, total), count in zip(stages, done, strict=True) if total is not None] == [
        total for _, total in stages if total is not None
    ]
