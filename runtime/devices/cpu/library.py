"""Kernel libraries, loaded from a copy of their own, so that what runs is the bytes that were hashed.

The dynamic loader knows libraries by their path and their file: it would give back the one that it has of a path,
whatever lies there now.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsv3c.runtime.errors import KernelMissing, LibraryInvalid, MemoryRefused

_LAZY = getattr(os, "RTLD_LAZY", 1)
_LOADED_ONLY = getattr(os, "RTLD_NOLOAD", 4)


class Library:
    """One load of a library, which shares nothing with another load of the same bytes, its threads included.

    It is given back with the last reference to it or to one of its functions. path: where the bytes are from.
    Raises LibraryInvalid, MemoryRefused.
    """

    def __init__(self, data: bytes, path: Path) -> None:
        self.path = path
        descriptor = _descriptor(data)
        try:
            if descriptor is None:
                with copied(data, path.suffix) as copy:
                    self.loaded = ctypes.CDLL(str(copy), _LAZY)
            else:
                self.loaded = ctypes.CDLL(_name(descriptor), _LAZY)
        except OSError as error:
            if descriptor is not None:
                os.close(descriptor)
            raise LibraryInvalid(path=path, reason=str(error)) from error
        # At exit the system takes everything back.
        weakref.finalize(self, _unload, self.loaded._handle, descriptor).atexit = False

    def function(self, name: str) -> Any:
        """A routine of C. Raises KernelMissing."""
        try:
            return self.loaded[name]
        except AttributeError as error:
            raise KernelMissing(path=self.path, name=name) from error

    def text(self, name: str) -> str | None:
        """A string that the library exports; None where it has none of that name."""
        try:
            found = ctypes.c_char * _TEXT
            return bytes(found.in_dll(self.loaded, name)).partition(b"\0")[0].decode("ascii", "replace")
        except ValueError:
            return None

    def kernel(self, tvm_ffi: Any, name: str) -> Any:
        """A function with the calling convention of TVM FFI. Raises KernelMissing."""
        return tvm_ffi.Function.__from_extern_c__(self.address(name), keep_alive_object=self)

    def address(self, name: str) -> int:
        """Of a kernel. Raises KernelMissing."""
        return ctypes.cast(self.function(f"__tvm_ffi_{name}"), ctypes.c_void_p).value or 0


_TEXT = 65  # a sha256 in hexadecimal and its end


@contextmanager
def copied(data: bytes, suffix: str) -> Iterator[Path]:
    """A file with these bytes, in a folder that no other has; gone when the body ends."""
    with tempfile.TemporaryDirectory(prefix="dsv3c-") as folder:
        path = Path(folder, f"library{suffix}")
        path.write_bytes(data)
        yield path


def _descriptor(data: bytes) -> int | None:
    """A file in memory with these bytes; None where the system has or gives none."""
    try:
        descriptor = os.memfd_create("dsv3c", os.MFD_CLOEXEC)
    except (AttributeError, OSError):
        return None
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError as error:
        os.close(descriptor)
        raise MemoryRefused(bytes=len(data), what="the kernels") from error
    return descriptor


def _name(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _unload(handle: int, descriptor: int | None) -> None:
    """The descriptor stays open as long as the library is there: its number is the loader's name for it."""
    close = ctypes.CDLL(None).dlclose
    close.argtypes = [ctypes.c_void_p]
    close(handle)
    if descriptor is None:
        return
    try:
        ctypes.CDLL(_name(descriptor), _LAZY | _LOADED_ONLY)
    except OSError:
        os.close(descriptor)
