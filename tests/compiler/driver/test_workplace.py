"""Workplaces: which of them are abandoned, what is removed of them, and that a kill leaves the old or the new."""

from __future__ import annotations

import errno
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3c.compiler.driver import artifact, workplace
from dsv3c.compiler.driver.workplace import LOCK, MADE, MAKING
from dsv3c.compiler.errors import NoRoomError, UnwritableOutputError

KILLED = """
import os, signal, sys
from pathlib import Path
from dsv3c.compiler.driver import artifact, renames, workplace

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

place, name = {"body": (None, ""), "made": (workplace, "exchange"), "aside": (os, "rename"),
               "replaced": (artifact, "remove")}[sys.argv[1]]
with artifact.writing(Path(sys.argv[2]), overwrite=True) as folder:
    (folder / "file").write_text("new")
    artifact.write_json(folder / "manifest.json", {
        "format_version": 1, "dsv3c_version": "0.1.0", "files": artifact.file_table(folder)})
    if place is None:
        kill()
    if place is os:
        rename, renames._rename = os.rename, lambda *_: False
        os.rename = lambda a, b: kill() if str(b) == sys.argv[2] else rename(a, b)
    elif place is artifact:
        workplace.exchange = lambda *places: (renames.exchange(*places), kill())
    else:
        setattr(place, name, kill)
"""


def finished(out: Path, text: str) -> Path:
    out.mkdir(parents=True)
    (out / "file").write_text(text)
    table = artifact.file_table(out)
    artifact.write_json(out / "manifest.json", {"format_version": 1, "dsv3c_version": "0.1.0", "files": table})
    return out


def killed(when: str, out: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, when, str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def left(out: Path) -> list[Path]:
    return [path for path in out.parent.iterdir() if path != out]


@pytest.mark.parametrize(("when", "text"), [("body", "old"), ("made", "old"), ("replaced", "new")])
def test_a_kill_leaves_the_old_or_the_new_and_the_next_one_clears_up(tmp_path: Path, when: str, text: str) -> None:
    out = finished(tmp_path / "out", "old")
    killed(when, out)
    assert (out / "file").read_text() == text
    assert len(left(out)) == 1
    assert artifact.sweep(out) == ()
    assert left(out) == [] and (out / "file").read_text() == text


def test_without_an_exchange_the_next_one_puts_the_old_back(tmp_path: Path) -> None:
    out = finished(tmp_path / "out", "old")
    killed("aside", out)
    assert artifact.sweep(out) == ()
    assert (out / "file").read_text() == "old"
    assert left(out) == []


def test_what_a_living_process_makes_is_left(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with artifact.writing(out, overwrite=False) as folder:
        assert artifact.sweep(out) == ()
        assert folder.is_dir()
        (folder / "file").write_text("x")
    assert (out / "file").exists() and left(out) == []


def test_other_outputs_are_left(tmp_path: Path) -> None:
    killed("body", tmp_path / "other")
    assert artifact.sweep(tmp_path / "out") == ()
    assert len(left(tmp_path / "out")) == 1


def abandoned(out: Path, host: str) -> Path:
    folder = out.parent / f".{out.name}.abcd_123.partial"
    (folder / MAKING).mkdir(parents=True)
    (folder / LOCK).write_text(host)
    return folder


def test_what_another_machine_left_is_named_and_kept(tmp_path: Path) -> None:
    folder = abandoned(tmp_path / "out", "far-away")
    (note,) = artifact.sweep(tmp_path / "out")
    assert str(folder) in note and "far-away" in note
    assert (folder / MAKING).is_dir()


def test_a_folder_of_such_a_name_without_a_lock_is_named_and_kept(tmp_path: Path) -> None:
    folder = abandoned(tmp_path / "out", "")
    (folder / LOCK).unlink()
    (note,) = artifact.sweep(tmp_path / "out")
    assert str(folder) in note
    assert (folder / MAKING).is_dir()
    (folder / MAKING).rmdir()
    assert artifact.sweep(tmp_path / "out") == ()
    assert not folder.exists(), "an empty one is of a process killed at once"


def test_something_foreign_that_was_replaced_is_named_and_kept(tmp_path: Path) -> None:
    """A kill right after the exchange, when a foreign folder had appeared meanwhile."""
    folder = abandoned(tmp_path / "out", platform.node())
    (folder / MADE).mkdir()
    (folder / MADE / "letter").write_text("letter")
    (note,) = artifact.sweep(tmp_path / "out")
    assert "is kept" in note and str(folder) in note
    assert (folder / MADE / "letter").read_text() == "letter"


def test_a_workplace_taken_for_abandoned_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, swept = os.mkdir, list[Path]()

    def unlucky(folder: Path, *mode: int) -> None:
        make(folder, *mode)
        if not swept and folder.name.endswith(".partial"):
            swept.append(folder)
            os.rmdir(folder)

    monkeypatch.setattr(workplace.os, "mkdir", unlucky)
    with artifact.writing(tmp_path / "out", overwrite=False) as folder:
        (folder / "file").write_text("x")
    assert (tmp_path / "out" / "file").exists()


@pytest.mark.parametrize("call", ["mkdir", "open", "write"])
def test_an_interrupt_right_behind_a_step_of_making_a_workplace_leaves_nothing(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = getattr(os, call)

    def interrupted(*arguments: object) -> None:
        step(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(workplace.os, call, interrupted)
        with pytest.raises(KeyboardInterrupt), artifact.writing(tmp_path / "out", overwrite=False):
            pass
    assert list(tmp_path.iterdir()) == []


def test_without_locks_all_else_works_and_nothing_is_taken_for_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(workplace.fcntl, "flock", unsupported)
    folder = abandoned(tmp_path / "out", platform.node())
    assert artifact.sweep(tmp_path / "out") == ()
    assert folder.exists()
    with artifact.writing(tmp_path / "out", overwrite=False) as making:
        (making / "file").write_text("x")
    assert (tmp_path / "out" / "file").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_disk_that_is_full_from_the_start_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(workplace.os, "write", full)
    with pytest.raises(NoRoomError, match=f"deep/out: {os.strerror(code)}"):
        artifact.writing(tmp_path / "deep" / "out", overwrite=False).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_with_the_place_that_was_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in (None, "making/file"):
        with pytest.raises(NoRoomError, match=r"cannot write .*/out: No space"), artifact.writing(out, False) as folder:
            raise OSError(errno.ENOSPC, "No space left on device", name and str(folder.parent / name))
    with pytest.raises(OSError, match="/elsewhere"), artifact.writing(out, overwrite=False):
        raise OSError(errno.ENOSPC, "No space left on device", "/elsewhere")
    assert list(tmp_path.iterdir()) == []


def test_folders_made_for_an_output_go_with_it_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for parts in ("mine/a/b/out", "mine/out"):
        with pytest.raises(ValueError), artifact.writing(tmp_path / parts, overwrite=False):
            raise ValueError
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


@pytest.mark.parametrize(
    ("name", "reason"), [("x" * 300, "File name too long"), ("file/a/out", ".*/file is no folder")]
)
def test_a_place_that_cannot_be_made_is_named_itself(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableOutputError, match=f"{name}: .*{reason}"):
        artifact.writing(tmp_path / name, overwrite=False).__enter__()


SCRATCH = """
import os, signal, sys
from dsv3c.compiler.driver.workplace import scratch

with scratch("some-work") as folder:
    (folder / "large").write_text("much")
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
"""


def test_what_a_killed_process_threw_away_the_next_one_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workplace.tempfile, "tempdir", str(tmp_path))
    place = os.environ | {"TMPDIR": str(tmp_path)}
    for name, kept in (("SIGINT", 0), ("SIGKILL", 1)):
        subprocess.run([sys.executable, "-c", SCRATCH, name], env=place, capture_output=True, check=False)
        assert len(list(tmp_path.iterdir())) == kept
    with workplace.scratch("some-work") as folder:
        assert list(folder.iterdir()) == []
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
