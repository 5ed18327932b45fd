"""Memory that kernels may touch: 64-byte aligned, allocated once; files mapped read-only and never copied."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.plan import Buffer
from dsv3c.runtime.errors import FileSizeWrong, FileUnreadable, MemoryRefused

Bytes = NDArray[np.uint8]

_HUGE_PAGE = 2 << 20
_LINE = 64


class _Window:
    """A span of a mapping, offered to numpy without a copy; numpy keeps this object, and so the mapping, alive."""

    def __init__(self, owner: mmap.mmap, address: int, size: int) -> None:
        self.owner = owner
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (size,), "data": (address, False)}


class Block:
    """Zeroed anonymous memory, 64-byte aligned; huge pages are asked for when it is large enough to hold one.

    A forked process goes on with a copy of its own. `data`: u8[size]. Raises MemoryRefused.
    """

    def __init__(self, size: int, what: str) -> None:
        large = size >= _HUGE_PAGE
        alignment = _HUGE_PAGE if large else _LINE
        try:
            self._map = mmap.mmap(-1, max(size, 1) + alignment, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError) as error:
            raise MemoryRefused(bytes=size, what=what) from error
        if large:
            _advise(self._map, "MADV_HUGEPAGE")
        start = np.frombuffer(self._map, np.uint8).ctypes.data
        address = start + (-start) % alignment
        self.address, self.size = address, size
        self.data: Bytes = np.asarray(_Window(self._map, address, size))

    def huge_bytes(self) -> int:
        """Bytes that the system really backs with huge pages now (memory never touched counts as none)."""
        return huge_page_bytes(self.address, self.size)


def map_descriptor(descriptor: int, path: Path, size: int, *, read_ahead: bool = True) -> Bytes:
    """u8[size]: an open file mapped read-only; the descriptor is closed. numpy calls it writable since DLPack refuses
    to export anything else; the pages themselves are not, a write would fault. read_ahead: let the system begin to
    read all of it."""
    try:
        actual = os.fstat(descriptor).st_size
        if actual != size:
            raise FileSizeWrong(path=path, actual=actual, expected=size)
        mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
    except (OSError, ValueError, OverflowError) as error:
        raise FileUnreadable(path=path, reason=str(error)) from error
    finally:
        os.close(descriptor)
    if read_ahead:  # for a cold page cache; kernels read a layer's weights in file order
        _advise(mapped, "MADV_WILLNEED")
    address = np.frombuffer(mapped, np.uint8).ctypes.data
    return np.asarray(_Window(mapped, address, size))


def typed(data: Bytes, offset: int, dtype: str, size: int) -> NDArray[Any]:
    """Flat view of `size` elements at a byte offset; bfloat16 is viewed as its uint16 bit patterns."""
    element = _element(dtype)
    return data[offset : offset + size * element.itemsize].view(element)


def _element(dtype: str) -> np.dtype[Any]:
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def empty_rows(cache: Buffer, count: int) -> NDArray[Any]:
    """[count, width], not initialised: room for rows of a cache on their way from or to a device."""
    return np.empty((count, cache.width), _element(cache.dtype))


def cache_offsets(caches: Iterable[Buffer], slots: int, alignment: int) -> tuple[dict[str, int], int]:
    """Where each cache of `slots` rows begins, by name, one behind the other; and the bytes that all take."""
    offsets, end = {}, 0
    for cache in caches:
        offsets[cache.name] = end
        end += -(-slots * cache.slot_bytes // alignment) * alignment
    return offsets, end


def huge_page_bytes(address: int, size: int) -> int:
    """AnonHugePages of the mappings that overlap the range, from /proc/self/smaps; 0 where there is no such file."""
    try:
        lines = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    total, inside = 0, False
    for line in lines:
        head, _, rest = line.partition(" ")
        if "-" in head and not head.endswith(":"):
            low, high = (int(part, 16) for part in head.split("-"))
            inside = low < address + size and address < high
        elif inside and head == "AnonHugePages:":
            total += int(rest.split()[0]) * 1024
    return min(total, size)


def _advise(mapped: mmap.mmap, name: str) -> None:
    advice = getattr(mmap, name, None)
    if advice is None:
        return
    try:
        mapped.madvise(advice)
    except OSError:
        return  # advice only: a kernel built without huge pages refuses it
