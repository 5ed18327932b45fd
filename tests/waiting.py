"""How tests wait: until something happens, never for so long that it must have happened.

On a busy machine any thread may stand still for seconds. Limits only end what hangs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 180.0  # seconds
_TICK = 0.005


def until(true: Callable[[], object]) -> None:
    for _ in range(round(PATIENCE / _TICK)):  # counted: a process may be stopped for a while
        if true():
            return
        time.sleep(_TICK)
    raise AssertionError("it does not happen")


def gone(pid: int) -> bool:
    """Whether this process has ended, waited for or not, by Linux's /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the second while it ends
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"
