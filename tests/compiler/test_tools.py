"""Programs that are started: a hanging one is told of and ended, and what is said of a full disk is understood."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from dsv3c.compiler import tools
from dsv3c.compiler.errors import NoRoomError, ToolHangsError

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


def test_a_program_that_takes_long_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tools, "PATIENCE_SECONDS", 0.05)
    done = tools.run(script("import time; time.sleep(0.3); print('done')"), OUT, "given")
    assert done.stdout == "done\n"
    assert capsys.readouterr().err.startswith(f"note: still waiting for {Path(sys.executable).name} (process ")


def test_a_program_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tools, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(tools, "LIMIT_SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(ToolHangsError, match="has not ended after 0 s: "):
        tools.run(
            script(f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); import time; time.sleep(60)"), OUT
        )
    assert time.monotonic() - began < 20
    if (tmp_path / "pid").exists():
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGCONT)
