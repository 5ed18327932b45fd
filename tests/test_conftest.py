"""The golden fixture and the choice of tests, which other tests rely on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import conftest
from tests.conftest import TESTS, Golden


def run_pytest(folder: Path, *args: str) -> str:
    """The output of pytest on one test file in `folder`, with the conftest of this suite."""
    (folder / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = isa(name)\n  needs(name)\n  thorough\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *args]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False).stdout


def test_golden_is_made_then_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conftest, "TESTS", tmp_path / "tests")
    stem = tmp_path / "tests" / "goldens" / "test_case" / "test_text"
    with pytest.raises(pytest.fail.Exception, match="does not exist; make it with: pytest --update-golden"):
        Golden(stem, update=False).check("one\ntwo")
    Golden(stem, update=True).check("one\ntwo")
    assert stem.with_suffix(".txt").read_text() == "one\ntwo\n"
    Golden(stem, update=False).check("one\ntwo")
    with pytest.raises(pytest.fail.Exception, match=r"-two\n\+three\n(.|\n)*--update-golden"):
        Golden(stem, update=False).check("one\nthree")


CASES = """
import pytest

@pytest.fixture
def nvcc():
    pass

def test_plain():
    pass

@pytest.mark.isa("no_such_feature")
def test_feature():
    raise AssertionError

@pytest.mark.needs("nvcc")
def test_mark():
    raise AssertionError

def test_fixture(nvcc):
    raise AssertionError

@pytest.mark.thorough
@pytest.mark.parametrize("number", range(3))
def test_matrix(number):
    pass
"""


def test_what_is_not_run_is_said_in_a_line_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_case.py").write_text(CASES)
    monkeypatch.setenv("PATH", str(tmp_path))
    output = run_pytest(tmp_path, "-n", "2")  # the processes tell the one that reports
    assert "1 passed" in output and "skipped" not in output
    assert "1  need a CPU with no_such_feature\n" in output
    assert "2  need nvcc: install NVIDIA's CUDA toolkit\n" in output
    assert "3  need more time, at further sizes, formats and levels: make test-all\n" in output
    (tmp_path / "ran.txt").write_text("test_case.py::test_plain\n")
    output = run_pytest(tmp_path, "-n", "0", "--all", "--except", "ran.txt", "--record", "now.txt")
    assert "3 passed" in output and "1  need nothing: they passed in an earlier run\n" in output
    assert (tmp_path / "now.txt").read_text().splitlines() == [f"test_case.py::test_matrix[{i}]" for i in range(3)]
