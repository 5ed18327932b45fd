"""What all files of tensors have in common, whatever their format: they are mapped, not read."""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dsv3c.compiler.checkpoint.errors import ChangedFileError, UnreadableFileError
from dsv3c.compiler.checkpoint.files import file_size, refuse_pointer
from dsv3c.compiler.errors import CheckpointError


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `begin` and `end` are byte offsets from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile(ABC):
    """One open file; `tensors` says what lies where in it. fault: raised, with a path and a reason, for a file that
    breaks its format."""

    fault: ClassVar[type[CheckpointError]]
    tensors: dict[str, TensorInfo]

    def __init__(self, path: Path) -> None:
        """Map the file. Raises `fault` for an empty one, UnreadableFileError when there is none, PointerFileError."""
        self.path = path
        self.size = file_size(path)
        if not self.size:
            raise self.fault(path=path, reason="it is empty")
        try:
            with path.open("rb") as file:
                refuse_pointer(file.read(64), path)
                self._map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # mmap says ValueError when the file shrank since
            raise UnreadableFileError(path=path, reason=getattr(error, "strerror", None) or error) from error

    @abstractmethod
    def array(self, name: str) -> np.ndarray[Any, Any]:
        """The tensor as a read-only view of the mapped file, without a copy, of bit patterns where numpy has no type
        for it. Raises ChangedFileError."""

    def release(self, begin: int, end: int) -> None:
        """Let the system drop the pages of the bytes [begin, end) from this process; views of them stay valid."""
        if not hasattr(mmap, "MADV_DONTNEED") or begin >= end:
            return
        start = begin // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def _view(self, info: TensorInfo, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """Raises ChangedFileError when the file changed its size since: touching pages it lost would kill the
        process."""
        if self._map.size() != self.size:
            raise ChangedFileError(path=self.path, expected=self.size, found=self._map.size())
        if info.begin == info.end:
            return np.empty(shape, dtype)
        flat = np.frombuffer(self._map, dtype, (info.end - info.begin) // dtype.itemsize, info.begin)
        return flat.reshape(shape)
