"""A folder held open is that folder, whatever takes its path."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from dsv3c.runtime.artifact.folder import Folder
from dsv3c.runtime.errors import ArtifactMissing, FileNotRegular, FileTooLarge, FileUnreadable


def folder(path: Path, content: bytes) -> Path:
    (path / "inner").mkdir(parents=True)
    for name in ("a", "inner/b"):
        (path / name).write_bytes(content)
    return path


def test_a_folder_that_is_replaced_is_still_the_old_one(tmp_path: Path) -> None:
    held = Folder(folder(tmp_path / "out", b"old"))
    os.rename(tmp_path / "out", tmp_path / "aside")
    folder(tmp_path / "out", b"newer")
    assert [held.read(name, 9) for name in ("a", "inner/b")] == [b"old", b"old"]
    assert held.status("a").st_size == 3
    (tmp_path / "aside" / "a").unlink()
    with pytest.raises(FileUnreadable):
        held.read("a", 9)


def test_links_that_the_folder_holds_are_followed_to_files_alone(tmp_path: Path) -> None:
    held = Folder(folder(tmp_path / "out", b"x"))
    folder(tmp_path / "other", b"y")
    (tmp_path / "out" / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "out" / "file").symlink_to(tmp_path / "other" / "a")
    assert held.read("linked/a", 9) == held.read("file", 9) == b"y"
    with pytest.raises(FileNotRegular, match="a folder"):
        held.open("linked")
    with pytest.raises(FileUnreadable):
        held.open("a/b")
    with pytest.raises(FileTooLarge):
        held.read("a", 0)


def test_reading_sets_aside_the_size_of_the_file_and_not_the_limit(tmp_path: Path) -> None:
    held = Folder(folder(tmp_path / "out", b"x" * 1000))
    tracemalloc.start()
    try:
        assert len(held.read("a", 1 << 32)) == 1000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_descriptor_goes_with_the_folder(tmp_path: Path) -> None:
    held = Folder(folder(tmp_path / "out", b"x"))
    descriptor = held.descriptor
    del held
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_what_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="does not exist"):
        Folder(tmp_path / "none")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactMissing, match="is not a folder"):
        Folder(tmp_path / "file")
