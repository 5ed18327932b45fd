"""Renames that cannot clobber: into a place that must be free, and two places for one another, each in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

# (function, flag of a rename that wants its target free, flag of an exchange): renameat2 of Linux, renamex_np of macOS.
_CALL = ("renamex_np", 4, 2) if sys.platform == "darwin" else ("renameat2", 1, 2)
_AT_FDCWD = -100
# Of a file system, or a system, that has no such rename.
_LACKING = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


def rename_new(source: Path, target: Path) -> None:
    """Rename a file or folder to a name that nothing has. Raises FileExistsError, with all as it was."""
    if _rename(source, target, _CALL[1]):
        return
    if source.is_dir():
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.rename(source, target)  # fails on anything that appears meanwhile but an empty folder
        return
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # takes the name first
    try:
        os.rename(source, target)
    except BaseException:
        target.unlink()
        raise


def exchange(one: Path, other: Path, aside: Path) -> None:
    """Let two files or folders change places.

    Where the system has no such step, `other` is at `aside` for a moment, a free name beside `one`.
    """
    if _rename(one, other, _CALL[2]):
        return
    rename_new(other, aside)
    try:
        rename_new(one, other)
    except BaseException:
        rename_new(aside, other)
        raise
    os.rename(aside, one)


def _rename(source: Path, target: Path, flag: int) -> bool:
    """Whether the system has such a rename, which is then done. Raises OSError."""
    function = getattr(ctypes.CDLL(None, use_errno=True), _CALL[0], None)
    if function is None:
        return False
    paths = os.fsencode(source), os.fsencode(target)
    if sys.platform == "darwin":
        failed = function(*paths, flag)
    else:
        failed = function(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], flag)
    code = ctypes.get_errno()
    if not failed:
        return True
    if code in _LACKING:
        return False
    raise OSError(code, os.strerror(code), str(target))
