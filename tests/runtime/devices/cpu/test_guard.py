"""Weights that are made shorter under a model end a step with an error; other faults go where they went before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3c import runtime
from dsv3c.runtime.errors import WeightsLost
from tests.conftest import TESTS
from tests.runtime import toy

GUARD = TESTS.parent / "targets" / "cpu" / "native" / "guard.c"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return toy.build_library(tmp_path_factory.mktemp("library"), str(GUARD), "-pthread")


@pytest.fixture
def folder(tmp_path: Path, library: bytes) -> Path:
    return toy.write_artifact(tmp_path / "toy", library=library)


def test_a_step_without_its_weights_is_an_error(folder: Path) -> None:
    content = (folder / "weights.safetensors").read_bytes()
    with runtime.load(folder) as model, runtime.load(folder) as other:
        model.logits([1, 2])
        os.truncate(folder / "weights.safetensors", 0)
        for _ in range(2):  # and stays one
            with pytest.raises(WeightsLost, match=r"weights\.safetensors could not be read while the model ran"):
                model.logits([1, 2])
        with pytest.raises(WeightsLost):
            other.generate([1, 2])
    (folder / "weights.safetensors").write_bytes(content)
    with runtime.load(folder) as model:
        assert (model.logits([1, 2]) == toy.expected_logits([1, 2])).all()


def test_a_file_that_takes_their_place_changes_nothing(folder: Path) -> None:
    with runtime.load(folder) as model:
        (folder / "new").write_bytes(b"")
        os.replace(folder / "new", folder / "weights.safetensors")
        assert (model.logits([1, 2]) == toy.expected_logits([1, 2])).all()


# Another file is made shorter and read; `before` and `after` stand around the loading of a model.
FAULT = """
import faulthandler, mmap, os, signal, sys
from dsv3c import runtime
{before}
model = runtime.load(sys.argv[1])
model.logits([1])
{after}
with open(sys.argv[1] + "/file", "w+b") as file:
    file.write(bytes(4096))
    file.flush()
    data = mmap.mmap(file.fileno(), 4096)
    os.truncate(file.fileno(), 0)
    {fault}
"""
READ, SEND = "print(data[0])", "os.kill(os.getpid(), signal.SIGBUS)"


@pytest.mark.parametrize(
    ("before", "fault", "code", "said"),
    [
        ("", READ, -signal.SIGBUS, ""),
        ("", SEND, -signal.SIGBUS, ""),
        ("faulthandler.enable()", READ, -signal.SIGBUS, "Fatal Python error: Bus error"),
        ("signal.signal(signal.SIGBUS, signal.SIG_IGN)", SEND, 0, ""),
        ("signal.signal(signal.SIGBUS, lambda *_: print('heard', file=sys.stderr))", SEND, 0, "heard"),
    ],
)
def test_other_faults_are_passed_on(folder: Path, before: str, fault: str, code: int, said: str) -> None:
    script = FAULT.format(before=before, after="", fault=fault)
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=False)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert said or not done.stderr


def test_faulthandler_may_come_later(folder: Path) -> None:
    script = FAULT.format(before="", after="faulthandler.enable()", fault=READ)
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGBUS
    assert done.stderr.startswith("Fatal Python error: Bus error")
