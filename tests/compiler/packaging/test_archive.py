"""The archive's bytes: the same for the same files, and made without holding a file in memory."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from dsv3c.compiler.packaging import archive
from dsv3c.compiler.packaging.archive import ArchiveFile
from dsv3c.runtime.artifact.artifact import FileEntry
from dsv3c.runtime.errors import FileSizeWrong, HashMismatch

EMPTY_HASH = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def packed(entries: list[ArchiveFile], compressed: bool = True) -> bytes:
    file = io.BytesIO()
    archive.write(file, "root", entries, compressed, lambda n: None)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [True, False])
def test_entries_are_sorted_and_bare_of_times_and_owners(compressed: bool) -> None:
    entries = [ArchiveFile("run.sh", b"#!", 2, executable=True), ArchiveFile.of_text("a/long/" + "n" * 120, "text")]
    content = packed(entries, compressed)
    assert content == packed(entries[::-1], compressed)
    assert content.startswith(b"\x1f\x8b") == compressed
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        first, second = tar.getmembers()
        assert (first.name, first.mode, second.name, second.mode) == (
            *("root/a/long/" + "n" * 120, 0o644),
            *("root/run.sh", 0o755),
        )
        assert {(member.mtime, member.uid, member.uname) for member in (first, second)} == {(archive.TIME, 0, "")}
        text = tar.extractfile(first)
        assert text is not None and text.read() == b"text"


def test_a_file_of_any_size_takes_little_memory(tmp_path: Path) -> None:
    size, seen = 256 << 20, []
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(size)
    with (tmp_path / "out.tar").open("wb") as out:
        tracemalloc.start()
        archive.write(out, "root", [ArchiveFile("weights", tmp_path / "weights", size)], False, seen.append)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    (tmp_path / "out.tar").unlink()
    assert sum(seen) == size and max(seen) <= 1 << 20
    assert peak < 16 << 20


def test_a_file_that_is_not_what_its_entry_says(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"12345678")
    with pytest.raises(HashMismatch, match="weights has the sha256"):
        packed([ArchiveFile("weights", path, 8, FileEntry(EMPTY_HASH, 8))])
    with pytest.raises(FileSizeWrong, match=r"weights has 8 bytes, manifest\.json says 9"):
        packed([ArchiveFile("weights", path, 9)])
