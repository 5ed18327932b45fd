"""A hidden folder beside what it will become, known as abandoned when the process that made it is gone.

.OUT.k3x9_q2a.partial/lock      locked while the process lives; holds the name of its machine
.OUT.k3x9_q2a.partial/making    what is being written
.OUT.k3x9_q2a.partial/journal   what of it is written already (driver.journal)
.OUT.k3x9_q2a.partial/made      the same when it is finished; what stood at OUT once the two have changed places
.OUT.k3x9_q2a.partial/aside     what stood at OUT, for a moment, where the system has no such exchange
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dsv3c.compiler.driver.renames import exchange, rename_new
from dsv3c.compiler.errors import Dsv3cError, NoRoomError, OutputExistsError, UnwritableOutputError

LOCK, MAKING, MADE, ASIDE, JOURNAL = "lock", "making", "made", "aside", "journal"
_SUFFIX = ".partial"
_ATTEMPTS = 10
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Removes what was replaced. Raises Dsv3cError, and leaves all of it, when it is not of the kind that may be replaced.
Remove = Callable[[Path], None]


@contextmanager
def workplace(out: Path, begun: Path | None = None) -> Iterator[Path]:
    """A new folder beside `out`, removed in the end but for what `put` may not remove; so are the folders around it
    that were made for it and stay empty. Raises UnwritableOutputError, and NoRoomError also for what the body writes.

    begun: an abandoned one to take over with all that is in it, unless another process was faster.
    """
    missing = [parent for parent in out.parents if not os.path.exists(parent)]  # the deepest first
    claim = _Claim()
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            if begun is None or not claim.take_over(begun):
                claim.make(out)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise NoRoomError(path=out, reason=error.strerror) from error
            raise UnwritableOutputError(path=out, reason=_reason(error, out.parent)) from error
        folder = claim.folder
        assert folder is not None
        try:
            yield folder
        except OSError as error:
            if error.errno in _NO_ROOM and (error.filename is None or folder in Path(error.filename).parents):
                raise NoRoomError(path=out, reason=error.strerror) from error
            raise
    finally:
        claim.release()
        _remove_empty(missing)


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A new folder where the system has such, removed in the end; what a killed process left of that name goes too."""
    place = Path(tempfile.gettempdir()) / name
    sweep(place, shutil.rmtree)
    with workplace(place) as folder:
        made = folder / MAKING
        made.mkdir()
        yield made


def put(folder: Path, out: Path, overwrite: bool, check: Callable[[Path], None], remove: Remove) -> None:
    """Make `making` of a workplace `out`, in one step: at any time either the old or the new is there.

    What stood there is replaced with `overwrite` alone, and only after `check` had nothing to say against it.
    Raises OutputExistsError, UnwritableOutputError and what `check` raises, with `out` as it was.
    """
    made, aside = folder / MADE, folder / ASIDE
    try:
        os.rename(folder / MAKING, made)
        if not overwrite or not os.path.lexists(out):
            rename_new(made, out)
            return
        exchange(made, out, aside)
        try:
            check(made)  # again: this is what is about to be removed
        except BaseException:
            exchange(made, out, aside)
            os.rename(made, folder / MAKING)
            raise
    except FileExistsError as error:
        os.rename(made, folder / MAKING)
        raise OutputExistsError(path=out) from error
    except OSError as error:
        if made.exists() and not aside.exists():
            os.rename(made, folder / MAKING)
        raise UnwritableOutputError(path=out, reason=error.strerror) from error
    with suppress(Dsv3cError, OSError):
        remove(made)


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step: a full disk or a kill leaves what was there. Raises UnwritableOutputError."""
    with workplace(path) as folder:
        (folder / MAKING).write_text(text, encoding="utf-8")
        put(folder, path, True, lambda old: None, os.unlink)


def sweep(out: Path, remove: Remove, kept: Path | None = None) -> tuple[str, ...]:
    """Remove the workplaces beside `out` whose processes are gone, but one that is to be kept; returns a note for each
    that cannot be removed."""
    found = (path for path in _beside(out) if path != kept)
    return tuple(note for path in found if path.is_dir() and (note := _sweep_one(path, out, remove)))


def abandoned(out: Path) -> list[Path]:
    """The workplaces beside `out` whose processes are gone, and were on this machine."""
    found = []
    for folder in _beside(out):
        lock = _locked(folder)
        if lock is not None:
            os.close(lock)
            found.append(folder)
    return found


def _beside(out: Path) -> list[Path]:
    """The workplaces of `out`, as their names say."""
    pattern = re.compile(rf"\.{re.escape(out.name)}\.[a-z0-9_]{{8}}{re.escape(_SUFFIX)}")
    try:
        return sorted(path for path in out.parent.iterdir() if pattern.fullmatch(path.name))
    except OSError:
        return []  # there is no such folder yet, or it cannot be listed


def _locked(folder: Path) -> int | None:
    """The lock of an abandoned workplace, held now; None when its process lives, or may do so elsewhere."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (folder / LOCK).exists() and os.pread(lock, 1 << 10, 0).decode(errors="replace") == platform.node():
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def _sweep_one(folder: Path, out: Path, remove: Remove) -> str:
    with suppress(OSError):
        os.rmdir(folder)  # it was never more than an empty folder
        return ""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return f"{folder} was left behind by something else; remove it if nothing uses it"
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Some file systems know a lock on the machine alone that holds it.
        host = os.read(lock, 1 << 10).decode(errors="replace")
        if host not in ("", platform.node()):
            return f"{folder} was left behind on {host}; remove it if nothing compiles there"
        return _remove_abandoned(folder, out, remove)
    except OSError:
        return ""  # its process lives; or there are no locks here, and nothing can be known to be abandoned
    finally:
        os.close(lock)


def _remove_abandoned(folder: Path, out: Path, remove: Remove) -> str:
    aside = folder / ASIDE
    try:
        if aside.exists() and not os.path.lexists(out):
            rename_new(aside, out)
        for path in (folder / MADE, aside):
            if path.exists():
                remove(path)
    except (Dsv3cError, OSError) as error:
        return f"{folder} was left behind and is kept: {str(error).partition(chr(10))[0]}"
    _discard(folder)
    return ""


class _Claim:
    """A workplace and its lock, which is held. Each is known before it is there, so that an interrupt at any moment
    leaves something that can be released."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._lock: int | None = None

    def make(self, out: Path) -> None:
        """A new one. Raises OSError."""
        for _ in range(_ATTEMPTS):
            self.folder = out.parent / f".{out.name}.{secrets.token_hex(4)}{_SUFFIX}"
            try:
                os.mkdir(self.folder, 0o700)
            except FileExistsError:
                self.folder = None  # another's
                continue
            try:
                self._lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            except FileNotFoundError:
                continue  # another process took it for abandoned, as it was empty
            if _hold(self._lock) and (self.folder / LOCK).exists():
                os.write(self._lock, platform.node().encode())  # without room for it the workplace goes
                return
            self._close()  # likewise, as it was not locked yet
        raise OSError(0, "its temporary folder is removed again and again")

    def take_over(self, folder: Path) -> bool:
        """An abandoned one; False where another process was faster."""
        self._lock = _locked(folder)
        self.folder = folder if self._lock is not None else None
        return self._lock is not None

    def release(self) -> None:
        if self.folder is not None:
            _discard(self.folder)
        self._close()

    def _close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _reason(error: OSError, parent: Path) -> str:
    for folder in (parent, *parent.parents):
        if os.path.lexists(folder) and not os.path.isdir(folder):
            return f"{folder} is no folder"
    return error.strerror or str(error)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _hold(lock: int) -> bool:
    """Lock it; False when another process was faster. Without locks on this file system it goes on without."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _discard(folder: Path) -> None:
    """Remove a workplace; one that still holds something that was replaced stays, with its lock."""
    making = folder / MAKING
    with suppress(OSError):
        if making.is_dir():
            shutil.rmtree(making, ignore_errors=True)
        else:
            making.unlink(missing_ok=True)
        (folder / JOURNAL).unlink(missing_ok=True)
        if {path.name for path in folder.iterdir()} <= {LOCK}:
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()
