from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from dsv3c.compiler import artifact
from dsv3c.compiler.errors import NotAnArtifactError, OutputExistsError, UnwritableOutputError


def finished(out: Path, text: str = "old") -> Path:
    """An artifact that is there already."""
    out.mkdir()
    (out / "manifest.json").write_text("{}")
    (out / text).write_text(text)
    return out


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_when_all_is_written(tmp_path: Path) -> None:
    out = tmp_path / "deeper" / "out"
    with artifact.writing(out, overwrite=False) as folder:
        assert folder.parent == out.parent
        (folder / "file").write_text("text")
        assert not out.exists()
    assert names(out.parent) == ["out"]
    assert (out / "file").read_text() == "text"
    assert stat.S_IMODE(out.stat().st_mode) == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), artifact.writing(tmp_path / "out", overwrite=False) as folder:
        (folder / "file").write_text("half")
        raise error
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableOutputError, match="cannot write to"):
        artifact.writing(tmp_path / "file" / "out", overwrite=False).__enter__()


def test_an_interrupted_run_leaves_the_old_artifact(tmp_path: Path) -> None:
    out = finished(tmp_path / "out")
    with pytest.raises(ValueError), artifact.writing(out, overwrite=True) as folder:
        (folder / "file").write_text("half")
        raise ValueError
    assert names(tmp_path) == ["out"]
    assert names(out) == ["manifest.json", "old"]


def test_an_existing_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    out = finished(tmp_path / "out")
    with pytest.raises(OutputExistsError, match="out exists already"), artifact.writing(out, overwrite=False):
        pytest.fail("the work began")
    assert names(tmp_path) == ["out"]


def test_overwriting_replaces_the_whole_folder(tmp_path: Path) -> None:
    out = finished(tmp_path / "out")
    with artifact.writing(out, overwrite=True) as folder:
        assert names(out) == ["manifest.json", "old"]
        (folder / "new").write_text("new")
    assert names(tmp_path) == ["out"]
    assert names(out) == ["new"]


def test_an_empty_folder_may_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with artifact.writing(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path / "out") == ["new"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_artifact_is_never_overwritten(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "home"
    if kind == "file":
        out.write_text("letter")
    else:
        out.mkdir()
        (out / "letter").write_text("letter")
    with pytest.raises(NotAnArtifactError, match="home is not an artifact"), artifact.writing(out, overwrite=True):
        pytest.fail("the work began")
    assert (out if kind == "file" else out / "letter").read_text() == "letter"


def test_a_failed_replacement_puts_the_old_artifact_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, rename = finished(tmp_path / "out"), os.rename

    def failing(source: Path, target: Path) -> None:
        if Path(source).suffix == ".partial":
            raise OSError("disk full")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="disk full"), artifact.writing(out, overwrite=True):
        pass
    assert names(tmp_path) == ["out"]
    assert names(out) == ["manifest.json", "old"]


def test_the_tokenizer_is_copied_as_it_is(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "tokenizer.json").write_bytes(b"\x00\xff{}")
    (source / "config.json").write_text("{}")
    artifact.copy_side_files(source, target)
    assert names(target) == ["tokenizer.json"]
    assert (target / "tokenizer.json").read_bytes() == b"\x00\xff{}"


def test_the_file_table_has_hash_and_size_of_every_file(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "a.so").write_bytes(b"abc")
    (tmp_path / "plan.json").write_bytes(b"")
    table = artifact.file_table(tmp_path)
    assert list(table) == ["kernels/a.so", "plan.json"]
    assert table["kernels/a.so"] == {"sha256": hashlib.sha256(b"abc").hexdigest(), "size": 3}


def test_json_is_readable_and_ends_in_a_newline(tmp_path: Path) -> None:
    artifact.write_json(tmp_path / "x.json", {"name": "Märchen", "list": [1]})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "Märchen" in text
    assert text.endswith("}\n")
    assert json.loads(text) == {"name": "Märchen", "list": [1]}
