"""Mapped files that lose pages under a kernel: the step ends with an error, not the process with a signal.

The handler of SIGBUS is C, in the kernel library (targets/cpu/native/guard.c). A signal belongs to the whole process,
and its handler can't be taken away again from under another that came later, so the first library that has one stays
loaded.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from pathlib import Path
from typing import Any

from dsv3c.runtime.devices.cpu.library import Library
from dsv3c.runtime.devices.memory import Bytes
from dsv3c.runtime.errors import KernelMissing, WeightsLost

_keepers: list[Library] = []  # the one whose handler this process has
_choosing = threading.Lock()


class Watch:
    """Looks after mapped bytes of a file, which stay mapped as long as this does. Nothing is done where neither this
    library nor an earlier one of the process can: those of artifacts from before."""

    def __init__(self, library: Library, data: Bytes, path: Path) -> None:
        self.path = path
        keeper = _keeper(library)
        self._lost = ctypes.c_int(0)
        if keeper is None:
            return
        watch, unwatch = keeper.function("dsv3c_watch"), keeper.function("dsv3c_unwatch")
        watch.argtypes, watch.restype = [ctypes.c_void_p, ctypes.c_size_t], ctypes.c_void_p
        unwatch.argtypes, unwatch.restype = [ctypes.c_void_p], None
        noted = watch(data.ctypes.data, data.size)
        if noted:
            self._lost = ctypes.c_int.from_address(noted)
            self._end = weakref.finalize(self, _end, unwatch, noted, data)
            self._end.atexit = False

    def require(self) -> None:
        """Raises WeightsLost if bytes could not be read since this was made."""
        if self._lost.value:
            raise WeightsLost(path=self.path)


def _end(unwatch: Any, noted: int, data: Bytes) -> None:
    unwatch(noted)


def _keeper(library: Library) -> Library | None:
    with _choosing:
        if not _keepers and _has_handler(library):
            _keepers.append(library)
        return _keepers[0] if _keepers else None


def _has_handler(library: Library) -> bool:
    try:
        library.function("dsv3c_watch")
    except KernelMissing:
        return False
    return True
