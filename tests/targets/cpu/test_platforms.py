"""C compilers that print what is no text."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv3c.compiler import machine
from dsv3c.targets.cpu import platforms


@pytest.fixture
def garbage(tmp_path: Path) -> Path:
    path = tmp_path / "garbage-cc"
    path.write_text("#!/bin/sh\nprintf '\\275\\377'\n")
    path.chmod(0o755)
    return path


def test_a_compiler_may_print_what_is_no_text(garbage: Path) -> None:
    assert not platforms._has([str(garbage)], "libdl.so.2")
    assert machine._first_line(str(garbage), "--version") == " (\ufffd\ufffd)"
