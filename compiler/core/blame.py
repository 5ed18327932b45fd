"""Which kernel an error is of: noted where it is known, for whoever says how that kernel alone is built again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from dsv3c.compiler.errors import is_fault

Item = TypeVar("Item")
_NOTED = "failed_kernel"


class FailedKernel(NamedTuple):
    """spec: the kernel's, as text. level: the name of the one it was built for, "" where the target has none."""

    spec: str
    level: str


def failed_kernel(error: Exception) -> FailedKernel | None:
    """The kernel that was noted, if any."""
    noted = vars(error).get(_NOTED)
    return noted if isinstance(noted, FailedKernel) else None


def blame(error: Exception, spec: object, level: str = "") -> None:
    """Note a kernel by its spec, whose `repr` is read back (targets/calls/spec_text.py)."""
    vars(error).setdefault(_NOTED, FailedKernel(repr(spec), level))


@contextmanager
def building(spec: object, level: str = "") -> Iterator[None]:
    """A fault inside is this kernel's."""
    try:
        yield
    except Exception as error:
        if is_fault(error):
            blame(error, spec, level)
        raise


def culprit(items: Sequence[Item], fails: Callable[[Sequence[Item]], bool]) -> Item | None:
    """An item that fails alone, found by halves; None when none does, so that the fault is of all together."""
    while len(items) > 1:
        first, rest = items[: len(items) // 2], items[len(items) // 2 :]
        items = first if fails(first) else rest
    return items[0] if items and fails(items) else None
