"""Progress on a terminal: the running stage as one live line on stderr, finished ones above it with their time."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import TextIO

REFRESH_SECONDS = 0.2
LEAST_SECONDS, LEAST_SHARE = 2, 0.02  # of a stage, before its speed says anything


class TerminalProgress:
    """Shows the stages of a long command: `stage` ends the last one and begins another, `advance` moves it on.

    A context manager. A thread redraws the line, so that a stage which never advances still shows its time.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)
        self._name = ""
        self._done, self._total = 0, 0
        self._began = 0.0
        self._drawn = 0

    def __enter__(self) -> TerminalProgress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        with self._lock:
            if kind is None:
                self._finish()
            self._erase()

    def stage(self, name: str, total: int | None = None) -> None:
        with self._lock:
            self._finish()
            self._name, self._began = name, time.perf_counter()
            self._done, self._total = 0, total or 0
            self._draw()

    def advance(self, n: int = 1) -> None:
        self._done += n

    def tell(self, text: str) -> None:
        """Print a line above the live one."""
        with self._lock:
            self._erase()
            self._write(text + "\n")
            self._draw()

    def _refresh(self) -> None:
        while not self._stopped.wait(REFRESH_SECONDS):
            with self._lock:
                self._draw()

    def _draw(self) -> None:
        if not self._name:
            return
        took = time.perf_counter() - self._began
        done = min(self._done / self._total, 1) if self._total else 0.0
        share = f"  {done:.0%}" if self._total else ""
        text = f"{self._name}{share}  {took:.0f} s{time_left(took, done)}"
        text = text[: shutil.get_terminal_size().columns - 1]
        self._erase()
        self._write(text)
        self._drawn = len(text)

    def _erase(self) -> None:
        # Blanks, not an escape sequence: they work on every terminal.
        self._write(f"\r{' ' * self._drawn}\r")
        self._drawn = 0

    def _finish(self) -> None:
        if not self._name:
            return
        self._erase()
        self._write(f"{self._name}  {time.perf_counter() - self._began:.1f} s\n")
        self._name = ""

    def _write(self, text: str) -> None:
        with suppress(OSError):  # a terminal that is gone must not end the work, nor change how it ends
            self._stream.write(text)
            self._stream.flush()


def time_left(took: float, done: float) -> str:
    """How long the rest of a stage takes at the speed so far, once that can be told."""
    if took < LEAST_SECONDS or not LEAST_SHARE <= done < 1:
        return ""
    seconds = round(took * (1 - done) / done)
    if seconds < 60:
        return f", {seconds} s left"
    minutes = round(seconds / 60)
    return f", {minutes} min left" if minutes < 60 else f", {minutes // 60} h {minutes % 60} min left"


class NotesOnly:
    """Where stderr is no terminal: what is told, and no progress."""

    def stage(self, name: str, total: int | None = None) -> None:
        pass

    def advance(self, n: int = 1) -> None:
        pass

    def tell(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def terminal_progress() -> TerminalProgress | None:
    """A progress display on stderr, or None where stderr is not a terminal."""
    return TerminalProgress(sys.stderr) if sys.stderr is not None and sys.stderr.isatty() else None


def batch_progress() -> TerminalProgress | None:
    """The same for a command whose results come meanwhile: not where they go to the terminal too."""
    shown = sys.stdout is not None and sys.stdout.isatty()
    return None if shown else terminal_progress()
