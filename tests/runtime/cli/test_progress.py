"""The live line on a terminal, read back as a terminal shows it."""

from __future__ import annotations

import io
import sys

import pytest

from dsv3c.runtime.cli import progress
from dsv3c.runtime.cli.progress import TerminalProgress, terminal_progress
from tests.waiting import until


def shown(stream: io.StringIO) -> list[str]:
    """The lines that a terminal would show: a carriage return goes back to the start and text overwrites."""
    lines = []
    for line in stream.getvalue().split("\n"):
        cells: list[str] = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return lines


def test_finished_stages_stay_with_their_time() -> None:
    stream = io.StringIO()
    with TerminalProgress(stream) as display:
        display.stage("a stage with a long name", 4)
        display.advance(2)
        display.stage("short")
        display.tell("found something")
    first, told, last, rest = shown(stream)
    assert first.startswith("a stage with a long name  0.") and first.endswith(" s")
    assert (told, last[:9], rest) == ("found something", "short  0.", "")
    assert "%" not in first


def test_the_running_stage_shows_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.01)
    stream = io.StringIO()
    with TerminalProgress(stream) as display:
        display.stage("writing", 8)
        display.advance(2)
        until(lambda: "writing  25%" in stream.getvalue())


@pytest.mark.parametrize(
    ("seconds", "done", "told"),
    [(1, 25, ""), (10, 0, ""), (10, 25, ", 30 s left"), (100, 25, ", 5 min left"), (100, 100, "")],
)
def test_a_long_stage_says_what_is_left(seconds: float, done: int, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = io.StringIO(), [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    display = TerminalProgress(stream)
    display.stage("writing weights", 100)
    now[0] = seconds
    display.advance(done)
    display.tell("")
    assert stream.getvalue().endswith(f"writing weights  {done}%  {seconds} s{told}")


def test_a_failing_command_leaves_no_half_line() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError), TerminalProgress(stream) as display:
        display.stage("writing")
        raise ValueError
    assert shown(stream) == [""]


def test_a_long_name_fits_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), TerminalProgress(stream) as display:
        display.stage("n" * 50)
        raise KeyboardInterrupt
    assert max(map(len, stream.getvalue().split("\r"))) == 19


def test_without_a_terminal_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert terminal_progress() is None
    monkeypatch.setattr(sys, "stderr", None)
    assert terminal_progress() is None


def test_a_terminal_that_is_gone_does_not_change_how_the_work_ends() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    with pytest.raises(KeyboardInterrupt), TerminalProgress(Gone()) as display:
        display.stage("a stage")
        display.tell("something")
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("took", "done", "says"),
    [
        (1.0, 0.5, ""),
        (10.0, 0.01, ""),
        (10.0, 1.0, ""),
        (10.0, 0.25, ", 30 s left"),
        (100.0, 0.25, ", 5 min left"),
        (3600.0, 0.25, ", 3 h 0 min left"),
    ],
)
def test_the_time_left_is_told_once_it_can_be(took: float, done: float, says: str) -> None:
    assert progress.time_left(took, done) == says
