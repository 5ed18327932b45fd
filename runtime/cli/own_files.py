"""Files that commands write where a person says: put in place at once, and never over something else."""

from __future__ import annotations

import os
from pathlib import Path

from dsv3c.runtime.errors import RuntimeFault

_HEAD = 1 << 12


def check_place(path: Path, mark: str, fault: type[RuntimeFault]) -> None:
    """Raises `fault` for a place that cannot be written to, or holds a file that has not `mark` near its beginning."""
    folder = path.resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise fault(path=path, reason=f"{folder} is no folder that this user may write to")
    if not path.exists():
        return
    if not path.is_file() or mark.encode() not in _head(path):
        raise fault(path=path, reason="something else is there")


def write_whole(path: Path, content: bytes) -> None:
    """All of it, or what was there stays."""
    place = path.resolve()
    temporary = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)
