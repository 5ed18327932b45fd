"""What a command line says of a system that lacks what every other has."""

from __future__ import annotations

import os
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


def test_without_dev_null_standard_streams_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "devnull", "/nowhere/null")
    group.prepare_streams()
