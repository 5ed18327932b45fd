"""The graph after each pass as a file, for `--dump-to`."""

from __future__ import annotations

import os
from pathlib import Path

from dsv3c.compiler.driver.workplace import write_whole
from dsv3c.compiler.errors import ForeignFileError, UnwritableOutputError


def write_dump(folder: Path, graph: str, number: int, phase: str, told: str, text: str) -> None:
    """Write one dump into `folder`, which is made, over an earlier one of the same graph.

    told: what is said of the phase behind its name. Raises ForeignFileError for what is there and is none,
    UnwritableOutputError, NoRoomError.
    """
    begin = f"# {graph} after "
    path = folder / f"{graph}-{number:02d}-{phase}.txt"
    if folder.exists() and not folder.is_dir():
        raise ForeignFileError(path=folder, kind="a folder")
    if os.path.lexists(path) and not _begins(path, begin.encode()):
        raise ForeignFileError(path=path, kind="the dump of a graph")
    write_whole(path, f"{begin}{phase}: {told}\n{text}\n")


def _begins(path: Path, begin: bytes) -> bool:
    if not path.is_file():  # opening a pipe would wait
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(begin)) == begin
    except OSError as error:
        raise UnwritableOutputError(path=path, reason=error.strerror) from error
