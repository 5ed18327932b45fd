"""Read JSON from files nobody vouches for: bounded, regular files only, no duplicate keys, no NaN."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from dsv3c.runtime.errors import FileNotRegular, FileTooLarge, FileUnreadable, MalformedJson

MAX_JSON_VALUES = 400_000  # time and memory grow with the values, not with the bytes; a large plan has 40,000
_MAX_DIGITS = 400  # of an integer; float64 ends at 309

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
    if sum(map(data.count, (b",", b"[", b"{"))) > limit:
        raise MalformedJson(path=path, reason=f"it has more than {limit} values")


def parse_json(data: bytes, path: Path | str) -> Any:
    """Strict JSON: UTF-8, no duplicate keys, finite numbers, bounded values, digits and depth. Raises MalformedJson."""
    require_few_values(data, path, MAX_JSON_VALUES)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("an object has the same key twice")
        return found

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    def integer(text: str) -> int:
        if len(text) > _MAX_DIGITS:
            raise ValueError(f"a number has {len(text)} digits")
        return int(text)

    def finite(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"the number {text[:40]} is too large")
        return value

    hooks: dict[str, Any] = {"object_pairs_hook": unique, "parse_constant": constant}
    try:
        return json.loads(data.decode("utf-8"), **hooks, parse_int=integer, parse_float=finite)
    except RecursionError as error:
        raise MalformedJson(path=path, reason="nested too deeply") from error
    except ValueError as error:  # covers UnicodeDecodeError and JSONDecodeError
        raise MalformedJson(path=path, reason=str(error)[:200]) from error


def read_json(path: Path, limit: int) -> Any:
    """Parsed content of a JSON file of at most `limit` bytes."""
    return parse_json(read_bytes(path, limit), path)


def _reason(error: Exception, path: Path) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    linked = isinstance(error, OSError) and os.path.islink(path)
    return f"it is a link to {os.readlink(path)}: {reason}" if linked else reason
