"""Threads take turns at what must not be interrupted: code that is not Python, and leaves the interpreter for a while.

Two events of the process concern it. A fork may come while another thread has its turn, one that the child does not
have: the child begins with a new lock. The end of the interpreter kills threads that come back from such code, in the
midst of frames that do not bear it, and with them the process: so it waits for the turn and never gives it up.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from types import TracebackType

_all: weakref.WeakSet[Turns] = weakref.WeakSet()  # of this process, whose events these are


class Turns:
    """`with turns:` waits for the turn; a thread that has it may take it again. `forked`: since this was made."""

    def __init__(self) -> None:
        self.forked = False
        self._lock = threading.RLock()
        _all.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def try_enter(self) -> bool:
        """As `__enter__` where nobody else has the turn; then `leave` gives it up."""
        return self._lock.acquire(blocking=False)

    def leave(self) -> None:
        self._lock.release()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def after_fork(self) -> None:
        """In the child."""
        self.forked = True
        if self._lock.acquire(blocking=False):  # free, or of the thread that forked, the one that goes on
            self._lock.release()
        else:
            self._lock = threading.RLock()

    def keep(self) -> None:
        """Take the turn for good."""
        self._lock.acquire()


def _every() -> list[Turns]:
    while True:
        try:
            return list(_all)
        except RuntimeError:  # another thread adds one
            continue


def _after_fork() -> None:
    for turns in _every():
        turns.after_fork()


def _at_exit() -> None:
    for turns in _every():
        turns.keep()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
