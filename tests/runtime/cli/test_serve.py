"""`dsv3c serve` before it serves: keys, what there is to serve, warnings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dsv3c.runtime.cli.serve import KeysInvalid, _check, read_keys
from dsv3c.runtime.errors import FileUnreadable
from dsv3c.runtime.server.settings import Settings
from tests.runtime.cli.conftest import Run


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    path.write_text("# of the team\nfirst\n\n  second \n")
    monkeypatch.delenv("DSV3C_API_KEY", raising=False)
    assert read_keys(None) == () and read_keys(path) == ("first", "second")
    monkeypatch.setenv("DSV3C_API_KEY", "third")
    assert read_keys(path) == ("third", "first", "second")


@pytest.mark.parametrize("content", ["", "# nothing\n", "two words\n", "schlüssel\n", "\x00\n"])
def test_what_is_no_key_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys").write_text(content, encoding="utf-8")
    with pytest.raises(KeysInvalid):
        read_keys(tmp_path / "keys")


def test_a_key_that_is_missing_or_empty_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileUnreadable):
        read_keys(tmp_path / "none")
    monkeypatch.setenv("DSV3C_API_KEY", "")
    with pytest.raises(KeysInvalid):
        read_keys(None)


def test_without_a_model_there_is_nothing_to_serve(run: Run, tmp_path: Path) -> None:
    assert "there is no model to serve" in run("serve", code=1)[1]
    assert f"{tmp_path} is not an artifact" in run("serve", tmp_path, code=1)[1]


def test_a_folder_of_models_that_is_not_there_is_an_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "none"):
        assert f"--models is {path}, which is no folder" in run("serve", "--models", path, code=1)[1]


def test_the_extra_is_asked_for_where_it_is_missing(run: Run, talking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dsv3c.runtime.server.serving", None)
    assert "pip install 'dsv3c[server]'" in run("serve", talking, code=1)[1]


def test_a_folder_without_an_artifact_is_warned_of(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _check(Settings(models=tmp_path))
    assert f"WARNING: {tmp_path} has no artifact so far" in capsys.readouterr().err


def test_another_host_without_a_key_is_warned_of(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").touch()
    _check(Settings(models=tmp_path, host="0.0.0.0"))
    assert "WARNING: without a key, everybody who reaches 0.0.0.0" in capsys.readouterr().err
    _check(Settings(models=tmp_path, host="0.0.0.0", keys=("k",)))
    _check(Settings(models=tmp_path))
    assert capsys.readouterr().err == ""


def test_drafts_are_by_one(run: Run, talking: Path) -> None:
    assert "give either" in run("serve", talking, "--speculate", "ngram", "--draft", talking, code=2)[1]
