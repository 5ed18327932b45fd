"""Files of unknown origin: bounded reads, strict JSON.

Links in a folder are its owner's: they are followed, wherever they lead. Names that a file gives are not.
"""

from __future__ import annotations

import codecs
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsv3c.compiler.checkpoint.errors import JsonError, PointerFileError, UnreadableFileError
from dsv3c.runtime.artifact.strict_json import parse
from dsv3c.runtime.artifact.strict_json import quote as quote

# What honest files stay far below: a config has kilobytes, the index of DeepSeek-V3 9 MB, known tokenizers up to 33 MB.
MAX_CONFIG_BYTES = 1 << 20
MAX_TABLE_BYTES = 64 << 20
MAX_JSON_VALUES = 1_500_000  # time and memory grow with them: 8 a tensor in a header, 1 in an index, 3 a merge of two

_NAMES_SHOWN = 5
_POINTER = b"version https://git-lfs.github.com/spec/"


def some(names: Sequence[str]) -> str:
    """The first few of many names, for a message."""
    shown = ", ".join(quote(name) for name in names[:_NAMES_SHOWN])
    return shown + (", …" if len(names) > _NAMES_SHOWN else "")


def exists(path: Path) -> bool:
    """Whether there is anything, be it a link to nothing. Raises UnreadableFileError when the system will not say."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        raise UnreadableFileError(path=path, reason=error.strerror) from error
    return True


def file_size(path: Path) -> int:
    """Size in bytes. Raises UnreadableFileError unless `path` is a regular file, or a link to one: opening a pipe would
    wait forever."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, OSError) and path.is_symlink():
            reason = f"it is a link to {path.readlink()}: {reason}"
        raise UnreadableFileError(path=path, reason=reason) from error
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableFileError(path=path, reason="it is not a regular file")
    return status.st_size


def read_bytes(path: Path, limit: int) -> bytes:
    """The whole file. Raises UnreadableFileError, also when it is longer than `limit`."""
    size = file_size(path)
    if size > limit:
        raise UnreadableFileError(path=path, reason=f"it is longer than {limit} bytes")
    try:
        with path.open("rb") as file:
            return file.read(size)  # as much is set aside at once
    except OSError as error:
        raise UnreadableFileError(path=path, reason=error.strerror) from error


def refuse_pointer(data: bytes, path: Path) -> None:
    """Raises PointerFileError when a file that begins with `data` is what a clone without git-lfs has in its place."""
    if data.startswith(_POINTER):
        raise PointerFileError(path=path)


def read_object(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes. Raises UnreadableFileError, PointerFileError, JsonError."""
    return read_object_of(read_bytes(path, limit), path)


def read_object_of(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in `data`, the content of `path`. Raises PointerFileError, JsonError."""
    data = data.removeprefix(codecs.BOM_UTF8)  # as some editors write it
    refuse_pointer(data, path)
    try:
        return parse_object(data)
    except ValueError as error:
        raise JsonError(path=path, reason=error) from error


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`. Raises ValueError as `strict_json.parse` for MAX_JSON_VALUES, and for what is none."""
    value = parse(data, MAX_JSON_VALUES)
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {quote(value)}")
    return value
