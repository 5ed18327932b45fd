"""Runs Python for arm64 on this machine, as if on a CPU of one's choice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import TESTS
from tests.targets.arm.make_root import EMULATOR

Arrays = Mapping[str, np.ndarray[Any, Any]]

# A CPU that has a level and none above it.
CPUS = {"armv8.0": "cortex-a72", "armv8.2-dotprod": "cortex-a76", "armv8.6": "max"}

ROOT = TESTS.parent / "build" / "arm-root"


def is_there() -> bool:
    """Whether ARM code runs here: `make arm-root` sets it up."""
    return shutil.which(EMULATOR) is not None and (ROOT / "complete").is_file()


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
    return subprocess.run(command, env=os.environ | inside, capture_output=True, text=True, check=False, timeout=600)


def call_kernels(
    cpu: str, library: Path, calls: Sequence[tuple[str, Arrays]], folder: Path
) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Call kernels of `library`, each on its operands by role; the operands after each call. Raises Died."""
    listed = [[i, kernel, list(arrays)] for i, (kernel, arrays) in enumerate(calls)]
    (folder / "calls.json").write_text(json.dumps(listed), encoding="utf-8")
    given = {f"{i}.{role}": array for i, (_, arrays) in enumerate(calls) for role, array in arrays.items()}
    np.savez(folder / "in.npz", **given)
    files = [str(folder / name) for name in ("calls.json", "in.npz", "out.npz")]
    done = run(cpu, folder, str(Path(__file__).with_name("call_kernels.py")), str(library), *files)
    if done.returncode != 0:
        raise Died(done.returncode, done.stderr[-4000:])
    with np.load(folder / "out.npz") as found:
        return [{role: found[f"{i}.{role}"] for role in roles} for i, _, roles in listed]


class Died(Exception):
    """(exit status, stderr) of a process that did not end well."""
