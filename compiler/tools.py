"""Programs that the compiler starts: their output is read, they are not waited for without end or word, and what they
say of a full disk is told as such."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dsv3c.compiler.errors import NoRoomError, ToolHangsError

PATIENCE_SECONDS = 20.0  # until a note says what is waited for
LIMIT_SECONDS = 1800.0
# As programs say it in the C locale.
_NO_ROOM = ("No space left on device", "Disk quota exceeded", "File too large", "File size limit exceeded")


def run(
    command: Sequence[str],
    writes: Path,
    given: str = "",
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with `given` as its input; what it failed at is for the caller to tell.

    writes: the file or folder it makes. Raises NoRoomError, ToolHangsError, and OSError when it cannot be started.
    """
    with subprocess.Popen(
        command,
        cwd=cwd,
        env={**(os.environ if environment is None else environment), "LC_ALL": "C"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            output, errors = _communicate(process, command, given)
        except BaseException:
            process.kill()
            raise
    if process.returncode and (reason := no_room(output + errors, process.returncode)):
        raise NoRoomError(path=writes, reason=reason)
    return subprocess.CompletedProcess(list(command), process.returncode, output, errors)


def no_room(text: str, code: int = 0) -> str | None:
    """What a program that ended with `code` said of a full disk, if it did."""
    if code == -signal.SIGXFSZ:
        return _NO_ROOM[-1]
    return next((reason for reason in _NO_ROOM if reason in text), None)


def _communicate(process: subprocess.Popen[str], command: Sequence[str], given: str) -> tuple[str, str]:
    try:
        return process.communicate(given, PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        told = f"note: still waiting for {Path(command[0]).name} (process {process.pid}), which writes no result so far"
        print(told, file=sys.stderr, flush=True)
    try:
        return process.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ToolHangsError(seconds=round(LIMIT_SECONDS), command=" ".join(command)) from error
