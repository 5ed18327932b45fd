"""What a command line says of a system that lacks what every other has."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from pathlib import Path

import click
import pytest

from dsv3c.runtime.cli import group


@click.group()
def root() -> None:
    pass


@root.command()
def look() -> None:
    Path("out").resolve()


def test_a_current_folder_that_is_gone_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DSV3C_DEBUG", raising=False)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert group.run(root, ["look"], "dsv3c") == group.FAULT
    assert capsys.readouterr().err.startswith("error: the current folder does not exist any more\n  hint: change into")


def test_notes_of_an_error_stand_behind_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSV3C_DEBUG", raising=False)

    @click.command("fail")
    def fail() -> None:
        error = OSError(5, "it broke", "a.txt")
        error.add_note("try that")
        raise error

    assert group.run(fail, [], "dsv3c") == group.FAULT
    assert capsys.readouterr().err == "error: it broke: a.txt\n  try that\n"


def test_without_dev_null_standard_streams_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "devnull", "/nowhere/null")
    group.prepare_streams()


SLOW_PACKAGE = """
import os, signal
os.kill(os.getpid(), signal.{signal})
for _ in range(1000):
    pass
with open("through", "w"):
    pass
"""


@pytest.mark.usefixtures("heeded_signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_waits_for_the_end_of_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, code: int
) -> None:
    """Packages in C would make an ImportError of what a signal raises."""
    (tmp_path / f"slow_{name}.py").write_text(SLOW_PACKAGE.format(signal=name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    @click.command("load")
    def load() -> None:
        importlib.import_module(f"slow_{name}")
        time.sleep(30)

    group_of_one = click.Group("dsv3c", {"load": load})
    assert group.run(group_of_one, ["load"], "dsv3c") == code
    assert (tmp_path / "through").exists()
    assert capsys.readouterr().err.strip() in ("interrupted", "terminated")


class Finalised:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass


@pytest.mark.usefixtures("heeded_signals")
def test_a_signal_waits_for_the_end_of_a_finaliser(capsys: pytest.CaptureFixture[str]) -> None:
    """What is raised there is printed and lost."""
    hook, done = sys.unraisablehook, []

    @click.command("work")
    def work() -> None:
        Finalised()
        time.sleep(10)
        done.append("it went on")

    assert group.run(work, [], "dsv3c") == 130
    assert capsys.readouterr().err.strip() == "interrupted"
    assert not done and sys.unraisablehook is hook


@pytest.mark.usefixtures("heeded_signals")
def test_what_still_waits_at_the_end_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slow_at_the_end.py").write_text(SLOW_PACKAGE.format(signal="SIGINT"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    @click.command("load")
    def load() -> None:
        importlib.import_module("slow_at_the_end")

    assert group.run(load, [], "dsv3c") == 130
    assert capsys.readouterr().err.strip() == "interrupted"
