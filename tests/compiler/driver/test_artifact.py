from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from dsv3c.compiler.driver import artifact
from dsv3c.compiler.errors import NotAnArtifactError, OutputExistsError, OutputNameError, UnwritableOutputError


def finished(out: Path, name: str = "old") -> Path:
    """An artifact that is there already."""
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text(name)
    manifest = {"format_version": 1, "dsv3c_version": "0.1.0", "files": artifact.file_table(out)}
    artifact.write_json(out / "manifest.json", manifest)
    return out


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_when_all_is_written(tmp_path: Path) -> None:
    out = tmp_path / "deeper" / "out"
    with artifact.writing(out, overwrite=False) as folder:
        assert folder.parent.parent == out.parent
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
    finished(tmp_path / "half", "native/src/a.c")
    (tmp_path / "half" / "native" / "src" / "a.c").unlink()  # a half copied one may be replaced
    with artifact.writing(tmp_path / "half", overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path) == ["half", "out"]


def test_an_empty_folder_may_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with artifact.writing(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path / "out") == ["new"]


def letter(folder: Path) -> None:
    folder.mkdir()
    (folder / "letter").write_text("letter")


def web_app(folder: Path) -> None:
    letter(folder)
    (folder / "manifest.json").write_text('{"name": "my web app", "files": {}, "format_version": 1}')


def hosting_a_letter(folder: Path) -> None:
    (finished(folder) / "letter").write_text("letter")


def hosting_a_folder(folder: Path) -> None:
    (finished(folder, "kernels/a.so") / "kernels" / "mine").mkdir()


def hosting_a_link(folder: Path) -> None:
    finished(folder)
    (folder / "old").rename(folder.with_name("elsewhere"))
    (folder / "thesis").symlink_to(folder.with_name("elsewhere"))


def broken(folder: Path) -> None:
    (finished(folder) / "manifest.json").write_text('{"format_version": 1, "files": ')


FOREIGN = (
    letter,
    web_app,
    hosting_a_letter,
    hosting_a_folder,
    hosting_a_link,
    broken,
    lambda path: path.write_text(""),
)
OVERWRITE = pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwrite"])


@pytest.mark.parametrize("make", FOREIGN, ids=lambda make: make.__name__.strip("<>"))
def test_what_is_no_artifact_is_never_overwritten(tmp_path: Path, make: Callable[[Path], None]) -> None:
    out = tmp_path / "home"
    make(out)
    before = content(tmp_path)
    with pytest.raises(NotAnArtifactError, match="home is not an artifact"), artifact.writing(out, overwrite=True):
        pytest.fail("the work began")
    assert content(tmp_path) == before


@pytest.mark.parametrize("make", FOREIGN, ids=lambda make: make.__name__.strip("<>"))
def test_overwriting_is_not_offered_for_what_is_never_overwritten(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "home")
    with pytest.raises(NotAnArtifactError) as caught:
        artifact.check_free(tmp_path / "home", overwrite=False)
    assert "--overwrite" not in str(caught.value)


@OVERWRITE
def test_a_link_that_leads_to_itself_is_refused_before_the_work(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out").symlink_to("out")
    with pytest.raises(UnwritableOutputError, match="out: it is a link that leads to itself"):
        artifact.check_free(tmp_path / "out", overwrite)


def test_a_mount_point_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "out")
    with pytest.raises(UnwritableOutputError, match="out: it is a mount point"):
        artifact.check_free(tmp_path / "out", overwrite=True)


@OVERWRITE
@pytest.mark.parametrize("make", FOREIGN, ids=lambda make: make.__name__.strip("<>"))
def test_what_appears_meanwhile_is_kept(tmp_path: Path, make: Callable[[Path], None], overwrite: bool) -> None:
    out, before = tmp_path / "home", {}
    with (
        pytest.raises(NotAnArtifactError if overwrite else OutputExistsError),
        artifact.writing(out, overwrite) as folder,
    ):
        (folder / "new").write_text("new")
        make(out)
        before = {name: data for name, data in content(tmp_path).items() if not name.startswith(".home.")}
    assert content(tmp_path) == before


def test_what_is_put_into_the_old_artifact_meanwhile_is_kept(tmp_path: Path) -> None:
    out = finished(tmp_path / "out")
    with pytest.raises(NotAnArtifactError, match="holds letter"), artifact.writing(out, overwrite=True) as folder:
        (folder / "new").write_text("new")
        (out / "letter").write_text("letter")
    assert names(out) == ["letter", "manifest.json", "old"]
    assert names(tmp_path) == ["out"]


@OVERWRITE
def test_an_empty_folder_that_appears_meanwhile_is_replaced_only_when_asked(tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "out"
    with nullcontext() if overwrite else pytest.raises(OutputExistsError), artifact.writing(out, overwrite) as folder:
        (folder / "new").write_text("new")
        out.mkdir()
    assert names(out) == (["new"] if overwrite else [])
    assert names(tmp_path) == ["out"]


def test_a_hostile_manifest_removes_nothing_outside(tmp_path: Path) -> None:
    out = finished(tmp_path / "out")
    (tmp_path / "letter").write_text("letter")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"]["../letter"] = manifest["files"]["old"]
    artifact.write_json(out / "manifest.json", manifest)
    with artifact.writing(out, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert (tmp_path / "letter").read_text() == "letter"


@pytest.mark.parametrize("name", ["a\nb", "a\x7f", os.fsdecode(b"a\xff")], ids=ascii)
def test_a_name_that_not_all_can_open_is_refused_before_the_work(tmp_path: Path, name: str) -> None:
    for out in (tmp_path / name, tmp_path / name / "out"):
        with pytest.raises(OutputNameError, match="cannot be the path of an artifact") as caught:
            artifact.writing(out, overwrite=True).__enter__()
        assert str(caught.value).replace("\n  hint: ", "").isprintable()
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_is_utf_8_whatever_names_are_in_it(tmp_path: Path) -> None:
    artifact.write_json(tmp_path / "x.json", {"name": os.fsdecode(b"a\xff")})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"name": "a?"}


def test_a_link_is_followed(tmp_path: Path) -> None:
    finished(tmp_path / "disk" / "out")
    (tmp_path / "out").symlink_to("disk/out")
    (tmp_path / "later").symlink_to("disk/later")
    for name, overwrite in (("out", True), ("later", True)):
        with artifact.writing(tmp_path / name, overwrite) as folder:
            (folder / "new").write_text("new")
        assert (tmp_path / name).is_symlink()
        assert names(tmp_path / "disk" / name) == ["new"]
    finished(tmp_path / "disk" / "third")
    (tmp_path / "third").symlink_to("disk/third")
    with pytest.raises(OutputExistsError):
        artifact.check_free(tmp_path / "third", overwrite=False)


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
