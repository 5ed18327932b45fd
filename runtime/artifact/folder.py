"""A folder held open, so that all files read through it are those of one artifact.

A folder of the same path that takes its place later is another one: what is opened then is still the old one's, or is
not there any more.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from dsv3c.runtime.artifact.jsonfile import open_regular, read_descriptor, require_regular
from dsv3c.runtime.errors import ArtifactMissing, FileUnreadable

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | getattr(os, "O_CLOEXEC", 0)


class Folder:
    """Names are relative, with `/`, and without `..`. `descriptor` is given back with the last reference."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises ArtifactMissing."""
        try:
            self.path = Path(path).resolve(strict=True)
            self.descriptor = os.open(self.path, _FLAGS)
        except TypeError as error:
            raise ArtifactMissing(path=repr(path), reason=f"it is {type(path).__name__}, not a path") from error
        except NotADirectoryError as error:
            raise ArtifactMissing(path=path, reason="it is not a folder") from error
        except PermissionError as error:
            raise ArtifactMissing(path=path, reason="this user may not open it") from error
        except (OSError, ValueError, RuntimeError) as error:
            raise ArtifactMissing(path=path, reason="it does not exist") from error
        weakref.finalize(self, os.close, self.descriptor).atexit = False

    def status(self, name: str) -> os.stat_result:
        """Of a regular file. Raises FileUnreadable, FileNotRegular."""
        with self._parent(name) as parent:
            return require_regular(self.path / name, parent)

    def open(self, name: str) -> int:
        """A descriptor of a regular file, for the caller to close. Raises as `status`."""
        with self._parent(name) as parent:
            return open_regular(self.path / name, parent)

    def read(self, name: str, limit: int) -> bytes:
        """The whole of a regular file of at most `limit` bytes. Raises as `status`, and FileTooLarge."""
        return read_descriptor(self.open(name), self.path / name, limit)

    def exists(self, name: str) -> bool:
        """Whether there is anything of this name in the folder itself."""
        try:
            os.lstat(name, dir_fd=self.descriptor)
        except OSError:
            return False
        return True

    @contextmanager
    def _parent(self, name: str) -> Iterator[int]:
        """The folder that holds the file. Links in a folder are its owner's: they are followed."""
        parent = os.dup(self.descriptor)
        try:
            for part in PurePosixPath(name).parts[:-1]:
                inner = self._enter(parent, part, name)
                os.close(parent)
                parent = inner
            yield parent
        finally:
            os.close(parent)

    def _enter(self, parent: int, part: str, name: str) -> int:
        try:
            return os.open(part, _FLAGS, dir_fd=parent)
        except OSError as error:
            raise FileUnreadable(path=self.path / name, reason=error.strerror) from error
