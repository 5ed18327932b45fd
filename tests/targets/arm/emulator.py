"""Runs Python for arm64 on this machine, as if on a CPU of one's choice."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from dsv3c.compiler.errors import Dsv3cError
from dsv3c.targets.cpu.platforms import ARM_LINUX, find_compiler_for
from tests.conftest import TESTS
from tests.targets.arm.make_root import EMULATOR

ROOT = TESTS.parent / "build" / "arm-root"


def missing() -> str:
    """What running ARM code here lacks, "" when nothing."""
    if shutil.which(EMULATOR) is None or not (ROOT / "complete").is_file():
        return "no emulated Python: make test-arm sets it up"
    return missing_linker()


def missing_linker() -> str:
    try:
        find_compiler_for(ARM_LINUX)
    except Dsv3cError as error:
        return str(error)
    return ""


def link_runtime(folder: Path) -> Path:
    """A folder to import `dsv3c.runtime` from, and nothing else of ours."""
    (folder / "dsv3c").mkdir(parents=True)
    (folder / "dsv3c" / "runtime").symlink_to(TESTS.parent / "runtime")
    return folder


def run(
    cpu: str, path: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python *arguments` on an emulated `cpu`, with `path` to import from before the installed packages."""
    inside = {
        "PYTHONHOME": str(ROOT / "usr"),
        "PYTHONPATH": f"{path}:{ROOT / 'site'}",
        "PYTHONDONTWRITEBYTECODE": "1",
        **(environment or {}),
    }
    command = [EMULATOR, "-cpu", cpu, "-L", str(ROOT), str(ROOT / "usr" / "bin" / "python3"), *arguments]
    return subprocess.run(
        command, env=os.environ | inside, capture_output=True, text=True, check=False, timeout=600
    )


needs_emulator = pytest.mark.skipif(bool(missing()), reason=missing())
needs_linker = pytest.mark.skipif(bool(missing_linker()), reason=missing_linker())
