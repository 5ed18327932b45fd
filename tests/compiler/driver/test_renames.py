"""Renames that cannot clobber, with the system's own step and without it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dsv3c.compiler.driver import renames
from dsv3c.compiler.driver.renames import exchange, rename_new


@pytest.fixture(params=["system", "fallback"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fallback":
        monkeypatch.setattr(renames, "_rename", lambda *_: False)
    return str(request.param)


def put(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


def read(path: Path) -> str:
    return (path / "file").read_text()


def test_a_free_name_is_taken(tmp_path: Path) -> None:
    rename_new(put(tmp_path / "a", "a"), tmp_path / "b")
    (tmp_path / "file").write_text("text")
    rename_new(tmp_path / "file", tmp_path / "other")
    assert sorted(os.listdir(tmp_path)) == ["b", "other"]
    assert (read(tmp_path / "b"), (tmp_path / "other").read_text()) == ("a", "text")


@pytest.mark.parametrize("kind", ["empty", "full", "file", "link"])
def test_a_name_that_is_taken_is_left_alone(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    if kind in ("empty", "full"):
        target.mkdir()
    if kind == "full":
        (target / "file").write_text("target")
    if kind == "file":
        target.write_text("target")
    if kind == "link":
        target.symlink_to("nowhere")
    (tmp_path / "file").write_text("file")
    for source in (put(tmp_path / "folder", "folder"), tmp_path / "file"):
        before = os.lstat(target)
        with pytest.raises(FileExistsError):
            rename_new(source, target)
        assert source.exists() and os.path.samestat(before, os.lstat(target))


def test_two_folders_change_places(tmp_path: Path) -> None:
    one, other = put(tmp_path / "one", "1"), put(tmp_path / "other", "2")
    exchange(one, other, tmp_path / "aside")
    assert (read(one), read(other)) == ("2", "1")
    assert sorted(os.listdir(tmp_path)) == ["one", "other"]


def test_an_exchange_that_fails_leaves_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, rename = put(tmp_path / "one", "1"), put(tmp_path / "other", "2"), os.rename

    def full(source: Path, target: Path, *_: object) -> bool:
        if source == one:
            raise OSError(errno.EIO, "broken")
        return bool(rename(source, target))

    monkeypatch.setattr(renames, "_rename", lambda *_: False)
    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="broken"):
        exchange(one, other, tmp_path / "aside")
    assert (read(one), read(other)) == ("1", "2")
    assert sorted(os.listdir(tmp_path)) == ["one", "other"]
