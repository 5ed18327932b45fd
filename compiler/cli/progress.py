"""Progress on a terminal: one line a stage, on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn


class TerminalProgress:
    """Shows the stages of a long command: `stage` ends the last one and begins another, `advance` moves it on.

    A context manager. The running stage is a live line with a bar where its total is known; finished ones stay with
    their time.
    """

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(show_speed=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._name = ""
        self._began = 0.0

    def __enter__(self) -> TerminalProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        self._bars.stop()

    def stage(self, name: str, total: int | None = None) -> None:
        self._finish()
        self._name, self._began = name, time.perf_counter()
        self._task = self._bars.add_task(name, total=total)

    def advance(self, n: int = 1) -> None:
        if self._task is not None:
            self._bars.advance(self._task, n)

    def _finish(self) -> None:
        if self._task is None:
            return
        self._bars.remove_task(self._task)
        self._bars.console.print(f"{self._name}  [dim]{time.perf_counter() - self._began:.1f} s", highlight=False)
        self._task = None


def terminal_progress() -> TerminalProgress | None:
    """A progress display on stderr, or None where stderr is not a terminal."""
    console = Console(stderr=True)
    return TerminalProgress(console) if sys.stderr.isatty() else None
