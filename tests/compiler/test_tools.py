"""Programs that are started: a hanging one is told of and ended, and what is said of a full disk is understood."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from dsv3c.compiler import tools
from dsv3c.compiler.errors import NoRoomError, ToolHangsError
from tests.waiting import gone

OUT = Path("out")


def script(text: str) -> list[str]:
    return [sys.executable, "-c", f"import os, signal, sys\n{text}"]


def test_input_and_output_go_through() -> None:
    done = tools.run(script("sys.stdout.write(sys.stdin.read().upper()); print('x', file=sys.stderr)"), OUT, "abc")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ABC", "x\n")


def test_bytes_that_are_no_text_do_no_harm() -> None:
    assert tools.run(script("os.write(1, b'a\\xff')"), OUT).stdout == "a�"


def test_failing_is_for_the_caller_to_tell() -> None:
    assert tools.run(script("sys.exit(3)"), OUT).returncode == 3


@pytest.mark.parametrize(
    "text",
    [
        "sys.exit('ld: final link failed: No space left on device')",
        "print('x.s: Disk quota exceeded'); sys.exit(1)",
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGXFSZ)",
    ],
    ids=["space", "quota", "limit"],
)
def test_no_room_is_told_as_such(text: str) -> None:
    with pytest.raises(NoRoomError, match="cannot write out: "):
        tools.run(script(text), OUT)


def test_a_program_that_says_so_and_succeeds_is_fine() -> None:
    assert tools.run(script("print('No space left on device')"), OUT).returncode == 0


def test_a_program_that_takes_long_is_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Told(io.StringIO):
        def write(self, text: str) -> int:
            (tmp_path / "told").touch()
            return super().write(text)

    monkeypatch.setattr(sys, "stderr", Told())
    monkeypatch.setattr(tools, "PATIENCE_SECONDS", 0.05)
    until_told = f"while not os.path.exists({str(tmp_path / 'told')!r}): time.sleep(0.01)"
    done = tools.run(script(f"import time\n{until_told}\nprint('done')"), OUT, "given")
    assert done.stdout == "done\n"
    assert sys.stderr.getvalue().startswith(f"note: still waiting for {Path(sys.executable).name} (process ")


def test_a_program_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tools, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(tools, "LIMIT_SECONDS", 0.3)
    with pytest.raises(ToolHangsError, match="has not ended after 0 s: "):
        tools.run(script("signal.pause()"), OUT)
    (process,) = re.findall(r"\(process (\d+)\)", capsys.readouterr().err)
    assert gone(int(process))
