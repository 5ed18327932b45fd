"""C compilers that print what is no text, and that make nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv3c.compiler.driver import machine
from dsv3c.targets.cpu import library
from dsv3c.targets.link import platforms


@pytest.fixture
def garbage(tmp_path: Path) -> Path:
    path = tmp_path / "garbage-cc"
    path.write_text("#!/bin/sh\nprintf '\\275\\377'\n")
    path.chmod(0o755)
    return path


def test_a_compiler_may_print_what_is_no_text(garbage: Path) -> None:
    assert not platforms._has([str(garbage)], "libdl.so.2")
    assert machine._first_line(str(garbage), "--version") == " (\ufffd\ufffd)"


@pytest.mark.parametrize("does", ["exit 0", 'echo hi > "$2"'])
def test_a_compiler_that_makes_no_code_has_failed(tmp_path: Path, does: str) -> None:
    path = tmp_path / "odd-cc"
    path.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n{does}\n')
    path.chmod(0o755)
    with pytest.raises(library.LinkFailed, match="made no library or object file"):
        library._compile([str(path)], [], tmp_path / "a.o")
