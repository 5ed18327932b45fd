"""`dsv3c package`: what is in the archive, and that a fault leaves nothing behind. Nothing is downloaded here."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import dsv3c.runtime
from dsv3c.compiler import cli
from dsv3c.compiler.packaging import wheels
from dsv3c.runtime.artifact.artifact import Artifact
from tests.runtime.test_stored_artifacts import STORED, VERSIONS

ARTIFACT = STORED / f"v{VERSIONS[-1]}" / "model"
MODEL = {"manifest.json", "plan.json", "weights.safetensors", "kernels/x86-64-v3.so"}
SCRIPTS = {"run.sh", "install.py", "package.json", "requirements.txt"}
WHEEL = "numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl"
RUNTIME = f"dsv3c_runtime-{dsv3c.runtime.__version__}-py3-none-any.whl"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wheels come from here."""

    def build(into: Path) -> Path:
        into.mkdir()
        (into / RUNTIME).write_bytes(b"runtime")
        return into / RUNTIME

    def download(into: Path, wanted: Sequence[str], tags: Sequence[str], python: str) -> list[Path]:
        into.mkdir()
        (into / WHEEL).write_bytes(b"numpy")
        return [into / WHEEL]

    monkeypatch.setattr(wheels, "build_runtime", build)
    monkeypatch.setattr(wheels, "download", download)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ARTIFACT, tmp_path / "in" / "tiny"))


def run(capsys: pytest.CaptureFixture[str], *args: object, code: int = 0) -> str:
    """stdout of `dsv3c package`, or stderr where it fails."""
    assert cli.run(["package", *map(str, args)]) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and "fault of dsv3c" not in captured.err
    return captured.out if code == 0 else captured.err


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_the_archive_holds_model_wheels_and_scripts(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (artifact / "notes.txt").write_text("not part of the artifact")
    out = run(capsys, artifact)
    archive = artifact.with_name("tiny-linux-x86_64.tar.gz")
    assert out.startswith(f"packed {archive}, ")
    assert out.endswith(
        'on the device: tar -xf tiny-linux-x86_64.tar.gz && tiny-linux-x86_64/run.sh -p "Once upon a time"\n'
    )
    found = members(archive)
    names = {*(f"model/{name}" for name in MODEL), *SCRIPTS, f"wheels/{RUNTIME}", f"wheels/{WHEEL}"}
    assert set(found) == {f"tiny-linux-x86_64/{name}" for name in names}
    assert found["tiny-linux-x86_64/model/plan.json"] == (ARTIFACT / "plan.json").read_bytes()
    digest = hashlib.sha256(b"numpy").hexdigest()
    assert found["tiny-linux-x86_64/requirements.txt"].decode() == f"numpy==2.4.6 --hash=sha256:{digest}\n"
    facts = json.loads(found["tiny-linux-x86_64/package.json"])
    assert (facts["machine"], facts["packages"], facts["bundled"]) == ("x86_64", {WHEEL: digest}, True)
    assert archive.stat().st_mode & 0o777 == 0o644


def test_the_same_input_gives_the_same_bytes(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        run(capsys, artifact, "-o", tmp_path / str(number) / "tiny.tar")
        (artifact / "plan.json").touch()
    assert (tmp_path / "1" / "tiny.tar").read_bytes() == (tmp_path / "2" / "tiny.tar").read_bytes()


def test_without_wheels_the_packages_are_named_only(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads(run(capsys, artifact, "-o", tmp_path / "tiny.tar.gz", "--no-wheels", "--json"))
    assert (report["wheels"], report["platform"]) == ([RUNTIME], "linux-x86_64")
    assert report["size"] == (tmp_path / "tiny.tar.gz").stat().st_size
    assert report["model_bytes"] == sum(file.size for file in Artifact.open(ARTIFACT).manifest.files.values())
    found = members(tmp_path / "tiny.tar.gz")
    assert [name for name in found if name.startswith("tiny/wheels/")] == [f"tiny/wheels/{RUNTIME}"]
    assert found["tiny/requirements.txt"].startswith(b"numpy==2.4.6 ")
    assert json.loads(found["tiny/package.json"])["bundled"] is False


def test_what_is_there_is_kept_unless_asked(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tiny.tar"
    run(capsys, artifact, "-o", out, "--no-wheels")
    before = out.read_bytes()
    error = run(capsys, artifact, "-o", out, code=1)
    assert "exists already" in error and "--overwrite" in error
    assert out.read_bytes() == before
    run(capsys, artifact, "-o", out, "--overwrite")
    assert f"tiny/wheels/{WHEEL}" in members(out)


@pytest.mark.parametrize("name", ["backup.tar", "backup.tar.gz"])
def test_what_is_no_such_archive_is_never_overwritten(
    artifact: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / name
    with tarfile.open(out, "w:gz" if name.endswith(".gz") else "w") as tar:
        tar.add(artifact / "manifest.json", "home/install.txt")
    backup = out.read_bytes()
    for content in (backup, backup[:60], b"", b"thesis"):
        out.write_bytes(content)
        assert "is not an archive of" in run(capsys, artifact, "-o", out, "--overwrite", code=1)
        assert out.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "in"]


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)], ids=["", "overwrite"])
def test_a_file_that_appears_meanwhile_is_kept(
    artifact: Path,
    tmp_path: Path,
    overwrite: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, download = tmp_path / "tiny.tar", wheels.download

    def slow(*args: Any) -> list[Path]:
        out.write_text("thesis")
        return download(*args)

    monkeypatch.setattr(wheels, "download", slow)
    run(capsys, artifact, "-o", out, *overwrite, code=1)
    assert out.read_text() == "thesis"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "tiny.tar"]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "says"),
    [("weights.safetensors", "sha256"), ("kernels/x86-64-v3.so", "sha256"), ("plan.json", "sha256")],
)
def test_a_damaged_file_is_refused(artifact: Path, name: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage(artifact / name)
    error = run(capsys, artifact, code=1)
    assert says in error and name in error
    assert [path.name for path in artifact.parent.iterdir()] == ["tiny"], "nothing half written stays"


def test_a_truncated_file_is_refused_at_once(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (artifact / "weights.safetensors").open("r+b") as file:
        file.truncate(100)
    assert "has 100 bytes, manifest.json says" in run(capsys, artifact, code=1)


def test_no_space_is_told_before_writing(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    assert "has 1000 free" in run(capsys, artifact, code=1)
    assert [path.name for path in artifact.parent.iterdir()] == ["tiny"]


def test_an_interrupted_run_leaves_nothing(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object) -> list[Path]:
        raise KeyboardInterrupt

    monkeypatch.setattr(wheels, "download", interrupted)
    assert run(capsys, artifact, code=130).strip() == "interrupted"
    assert [path.name for path in artifact.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["-o", "model.zip"], 1, "does not end in .tar.gz or .tar"),
        (["-o", ".tar"], 1, "does not end in .tar.gz or .tar"),
        (["--platform", "linux-aarch64"], 1, "is compiled for linux-x86_64, not for linux-aarch64"),
        (["--platform", "amiga"], 2, "'amiga' is not one of linux-x86_64"),
        (["--python", "3.10"], 2, "'3.10' is no version of Python from 3.11 on"),
        (["--python", "three"], 2, "is no version of Python"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options(args: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in run(capsys, ARTIFACT, *args, code=code)


def test_a_checkpoint_is_no_artifact(bundled_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "it is a checkpoint" in run(capsys, bundled_model, code=1)


def test_a_folder_that_is_a_file(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write to" in run(capsys, artifact, "-o", tmp_path / "file" / "out.tar", code=1)
