"""The runtime's wheel, built from the runtime that is imported here, and the wheels of the packages it needs."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

import dsv3c.runtime
from dsv3c.compiler import tools
from dsv3c.compiler.errors import Dsv3cError
from dsv3c.compiler.packaging.archive import TIME

# Installed without their dependencies. tokenizers asks for huggingface_hub, which brings a dozen packages and 24 MB to
# download tokenizers with; an artifact has its own.
ALONE = ("tokenizers",)
_BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


class WheelNotBuiltError(Dsv3cError):
    message = "the runtime's wheel could not be built: {reason}"
    hint = "pip install 'setuptools>=77'"


class WheelsUnavailableError(Dsv3cError):
    message = "pip found no wheels for Python {python} on {platform}: {reason}"
    hint = "is there a network? --python names the device's version of Python"


def source() -> Path:
    """The folder of the runtime, which is a project of its own: it has a pyproject.toml when installed, too."""
    return Path(dsv3c.runtime.__file__).parent


def build_runtime(into: Path) -> Path:
    """Build `dsv3c-runtime` into a folder and return its wheel; its bytes depend on the runtime's files alone.

    Raises WheelNotBuiltError.
    """
    into.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="dsv3c-wheel-") as scratch:
        # A copy: setuptools leaves folders behind, and an installed runtime may not be writable.
        copy = Path(scratch) / "runtime"
        shutil.copytree(source(), copy, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
        environment = os.environ | {"SOURCE_DATE_EPOCH": str(TIME)}
        # -P: modules of the runtime must not stand for those that setuptools imports.
        command = [sys.executable, "-P", "-c", _BUILD, str(into.resolve())]
        done = tools.run(command, into, cwd=copy, environment=environment)
    if done.returncode:
        raise WheelNotBuiltError(reason=_last_line(done.stderr))
    return into / done.stdout.splitlines()[-1]


def requirements(target: str, provider: str | None = None, extras: Sequence[str] = ()) -> list[str]:
    """What the runtime needs, with what its extra for a target, or for this provider of it, adds; most add nothing.

    extras: further ones of the runtime, by name."""
    project = tomllib.loads((source() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = project["optional-dependencies"]
    own = known.get(f"{target}-{provider}", known.get(target, []))
    return [*project["dependencies"], *own, *(line for extra in extras for line in known[extra])]


def download(into: Path, wanted: Sequence[str], tags: Sequence[str], python: str) -> list[Path]:
    """Download the wheels of requirements and of what they need in turn, for another machine than this.

    tags: platforms of wheels. python: major and minor version. Raises WheelsUnavailableError.
    """
    alone = [line for line in wanted if _project(line) in ALONE]
    platforms = [f"--platform={tag}" for tag in tags]
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--only-binary=:all:", "--implementation=cp"]
    command = [sys.executable, "-m", "pip", "download", *options, f"--python-version={python}", *platforms]
    for lines, more in ((sorted(set(wanted) - set(alone)), ()), (alone, ("--no-deps",))):
        if not lines:
            continue
        done = tools.run([*command, *more, "--dest", str(into), *lines], into)
        if done.returncode:
            raise WheelsUnavailableError(python=python, platform=tags[0], reason=_last_line(done.stderr))
    return sorted(into.glob("*.whl"))


def requirement_of(wheel: str) -> str:
    """The requirement that this wheel alone meets: `numpy-2.4.6-cp311-….whl` is numpy==2.4.6."""
    name, version, *_ = wheel.split("-")
    return f"{name}=={version}"


def _project(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line]
    return (errors or lines or ["no reason given"])[-1].strip()
