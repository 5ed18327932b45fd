"""Ctrl-C at any moment of a command: one line, exit code 130, no traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import heed_signals
from tests.runtime import toy
from tests.runtime.test_model import tokenizer_files

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are sent differently there")
BEGINS = """
import atexit, os, signal, sys
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
if {module!r} == "the end":
    atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
from dsv3c.{program}.cli import main
print("begun", file=sys.stderr, flush=True)
main()
"""


def begun(module: str, program: str, *args: object) -> subprocess.Popen[str]:
    """A program that is interrupted when it imports this module, behind its first line on stderr."""
    script = BEGINS.format(module=module, program=program)
    command = [sys.executable, "-c", script, *map(str, args)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, preexec_fn=heed_signals, **pipes)  # type: ignore[call-overload]
    assert process.stderr is not None and process.stderr.readline() == "begun\n"
    return process  # type: ignore[no-any-return]


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and what it told."""
    assert process.stderr is not None
    with process.stderr:
        told = process.stderr.read().strip()
    return process.wait(timeout=60), told


@pytest.mark.parametrize("program", ["runtime", "compiler"])
@pytest.mark.parametrize(
    "module",
    [
        "dsv3c.runtime.cli.group",
        "click",
        "click.parser",
        "dsv3c.runtime.cli.generate",
        "dsv3c.runtime.devices.listing",  # the command imports it
        "numpy",
        "numpy.linalg",
        "the end",
    ],
)
def test_an_import_is_interrupted_and_so_is_the_end(module: str, program: str) -> None:
    assert ended(begun(module, program, "doctor")) == (130, "interrupted")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_artifact(tmp_path_factory.mktemp("interrupt") / "toy", **tokenizer_files())


@pytest.mark.parametrize("command", ["bench", "chat", "doctor", "eval", "generate", "inspect", "serve", "verify"])
def test_a_command_is_interrupted_at_any_time(command: str, artifact: Path) -> None:
    """Or is done, in its own way: the toy has no kernels that could run."""
    book = artifact.parent / "book.txt"
    book.write_text("A" * 40)
    args = {
        "doctor": [],
        "eval": [artifact, "--text", book],
        "generate": [artifact, "-p", "A"],
        "serve": [artifact, "--port", 0],
    }
    seen = set()
    for delay in (0.03, 0.07, 0.15, 0.3, 0.5):
        process = begun("", "runtime", command, *args.get(command, [artifact]))
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        code, told = ended(process)
        assert "Traceback" not in told and "ignored" not in told, told
        if code == 130:  # behind what a command said that was done just before
            assert told.splitlines()[-1] == "interrupted"
        seen.add(code)
    assert 130 in seen and seen <= {130, 0, 1, -signal.SIGINT}
