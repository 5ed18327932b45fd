"""Read JSON from files nobody vouches for: bounded, regular files only, no duplicate keys, no NaN."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from dsv3c.runtime.errors import FileNotRegular, FileTooLarge, FileUnreadable, MalformedJson

_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def require_regular(path: Path, folder: int | None = None) -> os.stat_result:
    """Status of a regular file. Raises FileUnreadable, or FileNotRegular for links, folders and devices.

    folder: a descriptor of the folder to find it in; `path` is then what messages say, and its last name counts.
    """
    try:
        status = os.lstat(path if folder is None else path.name, dir_fd=folder)
    except (OSError, ValueError) as error:
        raise FileUnreadable(path=path, reason=_reason(error)) from error
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "not a file")
        raise FileNotRegular(path=path, kind=kind)
    return status


def open_regular(path: Path, folder: int | None = None) -> int:
    """A read-only descriptor of a regular file; the caller closes it. A link put there meanwhile is not followed.

    folder: as for `require_regular`.
    """
    require_regular(path, folder)
    # A pipe that replaced the file after the check must not block the open.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path if folder is None else path.name, flags, dir_fd=folder)
    except OSError as error:
        raise FileUnreadable(path=path, reason=_reason(error)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotRegular(path=path, kind="not a regular file")
    return descriptor


def read_bytes(path: Path, limit: int) -> bytes:
    """The whole of a regular file of at most `limit` bytes."""
    return read_descriptor(open_regular(path), path, limit)


def read_descriptor(descriptor: int, path: Path, limit: int) -> bytes:
    """As `read_bytes`, of a file that is open; it is closed."""
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise FileTooLarge(path=path, actual=size, limit=limit)
        try:
            return file.read(limit)
        except OSError as error:
            raise FileUnreadable(path=path, reason=_reason(error)) from error


def parse_json(data: bytes, path: Path | str) -> Any:
    """Strict JSON: UTF-8, no duplicate keys, no NaN or Infinity, bounded depth. Raises MalformedJson."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("an object has the same key twice")
        return found

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except RecursionError as error:
        raise MalformedJson(path=path, reason="nested too deeply") from error
    except ValueError as error:  # covers UnicodeDecodeError and JSONDecodeError
        raise MalformedJson(path=path, reason=str(error)[:200]) from error


def read_json(path: Path, limit: int) -> Any:
    """Parsed content of a JSON file of at most `limit` bytes."""
    return parse_json(read_bytes(path, limit), path)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
