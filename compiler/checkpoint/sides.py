"""The text files of a checkpoint: those of its folder, or made of the keys of a GGUF file."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dsv3c.compiler.checkpoint import gguf
from dsv3c.compiler.checkpoint.files import MAX_CONFIG_BYTES, exists, parse_object, read_bytes, refuse_pointer
from dsv3c.compiler.errors import JsonError


def side_path(checkpoint: Path, name: str) -> Path:
    """Where a text file lies, for a message."""
    return checkpoint if gguf.is_gguf(checkpoint) else checkpoint / name


def side_bytes(checkpoint: Path, name: str, limit: int) -> bytes | None:
    """The content of a text file; None when the checkpoint has none of that name.

    Raises UnreadableFileError, PointerFileError; for a GGUF file what `gguf.text` raises.
    """
    if gguf.is_gguf(checkpoint):
        return gguf.text(checkpoint, name)
    path = checkpoint / name
    if not exists(path):
        return None
    data = read_bytes(path, limit)
    refuse_pointer(data, path)
    return data


def side_object(checkpoint: Path, name: str, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any] | None:
    """The JSON object in a text file. Raises as `side_bytes`, and JsonError."""
    data = side_bytes(checkpoint, name, limit)
    if data is None:
        return None
    try:
        return parse_object(data.removeprefix(codecs.BOM_UTF8))  # as some editors write it
    except ValueError as error:
        raise JsonError(path=side_path(checkpoint, name), reason=error) from error


@contextmanager
def side_folder(checkpoint: Path) -> Iterator[Path]:
    """A folder that has the text files, while it is needed."""
    if not gguf.is_gguf(checkpoint):
        yield checkpoint
        return
    with TemporaryDirectory() as folder:
        for name in gguf.TEXTS:
            if (data := gguf.text(checkpoint, name)) is not None:
                (Path(folder) / name).write_bytes(data)
        yield Path(folder)
