"""Jobs in processes of their own: what they raise arrives, and none outlives its end."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dsv3c.compiler.errors import Dsv3cError, NoRoomError
from dsv3c.targets.cpu.children import JobDied, in_children
from dsv3c.targets.link.platforms import LinkFailed
from tests.waiting import PATIENCE, gone, until

WHAT = Path("what")


def run(*jobs: Callable[[], object]) -> list[int]:
    """The numbers of the jobs, as they ended."""
    ended: list[int] = []
    in_children(jobs, ended.append, WHAT)
    return ended


def test_each_job_runs_once_in_another_process(tmp_path: Path) -> None:
    def job(number: int) -> Callable[[], object]:
        return lambda: (tmp_path / str(number)).write_text(str(os.getpid()))

    assert sorted(run(*map(job, range(5)))) == list(range(5))
    pids = {(tmp_path / str(number)).read_text() for number in range(5)}
    assert len(pids) == 5 and str(os.getpid()) not in pids


def test_what_a_job_raises_arrives_with_its_fields() -> None:
    def fails() -> None:
        raise LinkFailed(path="a.so", command="cc", output="x" * 200_000)

    with pytest.raises(LinkFailed, match=r"linking a\.so failed: cc") as caught:
        run(lambda: None, fails)
    assert vars(caught.value)["output"] == "x" * 200_000

    def breaks() -> None:
        raise OSError(28, "No space left on device", "a.o")

    with pytest.raises(OSError, match=r"No space left on device: 'a\.o'"):
        run(breaks)

    class Unknown(Exception):
        pass

    def fails_oddly() -> None:
        raise Unknown("cannot be pickled")

    with pytest.raises(RuntimeError, match="cannot be pickled"):
        run(fails_oddly)


def says_and_dies(text: str) -> None:
    faulthandler.disable()  # of pytest
    os.write(2, f"a warning\n{text}\n".encode())
    os.abort()


def test_a_full_disk_that_ends_the_process_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NoRoomError, match="cannot write what: No space left on device\n  hint: make room"):
        run(lambda: says_and_dies("LLVM ERROR: IO failure on output stream: No space left on device"))
    captured = capfd.readouterr()
    assert captured.err == "a warning\n", "what LLVM said goes into the error, all else is passed on"


@pytest.mark.parametrize("text", ["LLVM ERROR: Cannot select", "Segmentation fault"])
def test_a_process_that_dies_is_an_error(text: str) -> None:
    said = text if text.startswith("LLVM") else "it said nothing"
    with pytest.raises(JobDied, match=f"ended with signal SIGABRT: {said}"):
        run(lambda: says_and_dies(text))


def test_what_a_job_prints_arrives(capsys: pytest.CaptureFixture[str]) -> None:
    run(lambda: print("x" * 100_000, file=sys.stderr))
    assert capsys.readouterr().err == "x" * 100_000 + "\n"


def test_no_child_outlives_an_error_nor_what_it_started(tmp_path: Path) -> None:
    def waits() -> None:
        with subprocess.Popen(["sleep", "60"]) as process:
            (tmp_path / "pid").write_text(str(process.pid))
            (tmp_path / "ready").touch()

    def fails() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        raise Dsv3cError(text="enough")

    with pytest.raises(Dsv3cError, match="enough"):
        run(waits, fails)
    pid = int((tmp_path / "pid").read_text())
    until(lambda: gone(pid))


def test_signals_of_the_parent_are_not_the_childs() -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(JobDied, match="signal SIGTERM"):
            run(lambda: os.kill(os.getpid(), signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_job_that_failed_is_told_when_no_other_runs(tmp_path: Path) -> None:
    told: list[int] = []

    def waits() -> None:
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(60)

    def fails() -> None:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        raise Dsv3cError(text="enough")

    def failed(number: int, error: Exception) -> None:
        assert str(error) == "enough" and gone(int((tmp_path / "pid").read_text()))
        told.append(number)

    with pytest.raises(Dsv3cError, match="enough"):
        in_children([waits, fails], lambda number: None, WHAT, failed)
    assert told == [1]


LEAVING = """
import ctypes, os
from pathlib import Path
from dsv3c.targets.cpu.children import JobDied, in_children

CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
handler = CALLBACK(lambda _: print("ran in", os.getpid() == parent, flush=True))
parent = os.getpid()
ctypes.CDLL(None)["__cxa_atexit"](handler, None, None)
try:
    in_children([lambda: ctypes.CDLL(None).exit(1)], lambda number: None, Path("x"))
except JobDied:
    print("died", flush=True)
os._exit(0)
"""


def test_a_job_that_leaves_runs_nothing_of_other_libraries() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert done.stdout == "died\n"
