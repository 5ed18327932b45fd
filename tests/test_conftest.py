"""The golden fixture and the isa marker, which other tests rely on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def run_pytest(folder: Path, *args: str) -> str:
    """The output of pytest on one test file in `folder`, with the conftest of this suite."""
    (folder / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = isa(name)\n")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    folder = tmp_path / "suite"
    folder.mkdir()
    return folder


def test_golden_is_made_then_compared(suite: Path) -> None:
    case = suite / "test_case.py"
    case.write_text("def test_text(golden):\n    golden.check('one\\ntwo')\n")
    assert "does not exist" in run_pytest(suite)
    assert "1 passed" in run_pytest(suite, "--update-golden")
    assert (suite / "goldens/test_case/test_text.txt").read_text() == "one\ntwo\n"
    assert "1 passed" in run_pytest(suite)

    case.write_text("def test_text(golden):\n    golden.check('one\\nthree')\n")
    output = run_pytest(suite)
    assert "-two" in output and "+three" in output and "--update-golden" in output


def test_missing_cpu_feature_skips_with_its_name(suite: Path) -> None:
    (suite / "test_case.py").write_text(
        "import pytest\n\n\n@pytest.mark.isa('no_such_feature')\ndef test_kernel():\n    raise AssertionError\n"
    )
    output = run_pytest(suite)
    assert "1 skipped" in output and "lacks no_such_feature" in output
