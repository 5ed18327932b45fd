from __future__ import annotations

import os
from pathlib import Path

import pytest

from dsv3c.compiler.checkpoint.side_files import OBJECTS, TEMPLATE, check_side_files
from dsv3c.compiler.errors import CheckpointError, JsonError, PointerFileError, UnreadableFileError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def test_none_has_to_be_there_and_objects_are_accepted(tmp_path: Path) -> None:
    check_side_files(tmp_path)
    for name in OBJECTS:
        (tmp_path / name).write_text('{"eos_token_id": [0, 1], "model_max_length": 1000000000000000019884624838656}')
    (tmp_path / TEMPLATE).write_text("{{ messages }}")
    check_side_files(tmp_path)


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"null", b"[" * 100_000, b'{"a":NaN}', b'{"a":1,"a":1}'])
def test_what_is_no_object_is_refused(data: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(JsonError, match=name):
        check_side_files(tmp_path)


@pytest.mark.parametrize("name", [*OBJECTS, TEMPLATE])
def test_pointers_and_what_is_no_file_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    changes: list[tuple[object, type[CheckpointError]]] = [
        (lambda: path.write_bytes(POINTER), PointerFileError),
        (lambda: path.write_bytes(bytes((16 << 20) + 1)), UnreadableFileError),
        (lambda: os.mkfifo(path), UnreadableFileError),
        (lambda: path.symlink_to("nothing"), UnreadableFileError),
    ]
    for make, error in changes:
        make()  # type: ignore[operator]
        with pytest.raises(error, match=name):
            check_side_files(tmp_path)
        path.unlink()
