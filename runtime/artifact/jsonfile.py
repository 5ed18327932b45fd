"""Files nobody vouches for: bounded, regular ones only, JSON by `strict_json`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsv3c.runtime.artifact import strict_json
from dsv3c.runtime.errors import FileNotRegular, FileTooLarge, FileUnreadable, MalformedJson

MAX_JSON_VALUES = 400_000  # a large plan has 40,000

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def require_regular(path: Path, folder: int | None = None) -> os.stat_result:
    """Status of a regular file, or of one that a link leads to. Raises FileUnreadable, or FileNotRegular for others.

    folder: a descriptor of the folder to find it in; `path` is then what messages say, and its last name counts.
    """
    try:
        status = os.stat(path if folder is None else path.name, dir_fd=folder)
    except (OSError, ValueError) as error:
        raise FileUnreadable(path=path, reason=_reason(error, path)) from error
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "not a file")
        raise FileNotRegular(path=path, kind=kind)
    return status


def open_regular(path: Path, folder: int | None = None) -> int:
    """A read-only descriptor of a regular file, or of one that a link leads to; the caller closes it.

    folder: as for `require_regular`.
    """
    require_regular(path, folder)
    # A pipe that replaced the file after the check must not block the open.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path if folder is None else path.name, flags, dir_fd=folder)
    except OSError as error:
        raise FileUnreadable(path=path, reason=_reason(error, path)) from error
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
            return file.read(size)  # as much is set aside at once
        except OSError as error:
            raise FileUnreadable(path=path, reason=_reason(error, path)) from error


def require_few_values(data: bytes, path: Path | str, limit: int) -> None:
    """Raises MalformedJson for a JSON text of more than `limit` values, without parsing it."""
    with _malformed(path):
        strict_json.require_few_values(data, limit)


def parse_json(data: bytes, path: Path | str) -> Any:
    """As `strict_json.parse`, for MAX_JSON_VALUES. Raises MalformedJson."""
    with _malformed(path):
        return strict_json.parse(data, MAX_JSON_VALUES)


@contextmanager
def _malformed(path: Path | str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise MalformedJson(path=path, reason=str(error)[:200]) from error


def read_json(path: Path, limit: int) -> Any:
    """Parsed content of a JSON file of at most `limit` bytes."""
    return parse_json(read_bytes(path, limit), path)


def _reason(error: Exception, path: Path) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    linked = isinstance(error, OSError) and os.path.islink(path)
    return f"it is a link to {os.readlink(path)}: {reason}" if linked else reason
