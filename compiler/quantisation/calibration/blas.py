"""How many threads numpy's products take: workers that each have a matrix of their own want one apiece."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

_PREFIXES = ("scipy_", "")
_SUFFIXES = ("64_", "")


class _Threads(NamedTuple):
    get: Callable[[], int]
    set: Callable[[int], None]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Products take `count` threads, in all of the process. Nothing changes where numpy has no OpenBLAS of its own."""
    found = _openblas()
    if found is None:
        yield
        return
    before = found.get()
    found.set(count)
    try:
        yield
    finally:
        found.set(before)


@cache
def _openblas() -> _Threads | None:
    """The library that came with numpy, which is loaded already."""
    package = Path(np.__file__).parent
    folders = (package.parent / "numpy.libs", package / ".dylibs")
    paths = (path for folder in folders for path in sorted(folder.glob("*openblas*")))
    for path, prefix, suffix in product(paths, _PREFIXES, _SUFFIXES):
        library = ctypes.CDLL(str(path))  # the same handle each time
        names = [f"{prefix}openblas_{verb}_num_threads{suffix}" for verb in ("get", "set")]
        if all(hasattr(library, name) for name in names):
            return _Threads(*(getattr(library, name) for name in names))
    return None
