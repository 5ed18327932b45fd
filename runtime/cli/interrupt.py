"""Ctrl-C while nothing is under way: before a command has begun, and after it is done."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType
from typing import NoReturn

TOLD = "interrupted"
INTERRUPTED = 130


def ends_at_once() -> None:
    """From now on, unless somebody ignores it (nohup) or handles it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)


def end(number: int, frame: FrameType | None) -> NoReturn:
    """There is nothing to clean up, and an exception would be printed in the midst of an import."""
    with suppress(OSError):
        os.write(2, f"\n{TOLD}\n".encode())  # behind what the terminal shows of the keys
    os._exit(INTERRUPTED)
