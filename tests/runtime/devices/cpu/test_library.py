"""Libraries run from the bytes that were read, and are given back."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dsv3c.runtime.devices.cpu import library as module
from dsv3c.runtime.devices.cpu.library import Library
from dsv3c.runtime.errors import KernelMissing, LibraryInvalid

Build = Callable[..., bytes]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """A library whose function `which` gives a number."""
    compiler = shutil.which("cc") or pytest.skip("there is no C compiler (cc)")

    def built(number: int, *flags: str) -> bytes:
        source, out = tmp_path / "which.c", tmp_path / "which.so"
        source.write_text(f'int which(void) {{ return {number}; }}\nconst char text[65] = "{number:064d}";\n')
        subprocess.run([compiler, "-shared", "-fPIC", *flags, str(source), "-o", str(out)], check=True)
        return out.read_bytes()

    return built


@pytest.fixture(params=["in memory", "in a file"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "in a file":
        monkeypatch.setattr(module, "_descriptor", lambda data: None)
    return str(request.param)


def test_each_load_is_of_its_own_bytes(build: Build, where: str) -> None:
    libraries = [Library(build(number), Path("kernels/base.so")) for number in (1, 2, 3)]
    assert [library.function("which")() for library in libraries] == [1, 2, 3]
    assert [library.text("text") for library in libraries] == [f"{number:064d}" for number in (1, 2, 3)]
    assert libraries[0].text("nothing") is None


def test_a_library_goes_with_its_last_reference(build: Build, where: str) -> None:
    data = build(1)

    def counts() -> tuple[int, int]:
        gc.collect()  # what tests before this one left may hold files
        return Path("/proc/self/maps").read_text().count("dsv3c"), len(os.listdir("/proc/self/fd"))

    before = counts()
    for _ in range(20):
        assert Library(data, Path("base.so")).function("which")() == 1
    assert counts() == before


def test_one_that_stays_loaded_is_not_taken_for_the_next(build: Build) -> None:
    stays = Library(build(1, "-Wl,-z,nodelete"), Path("base.so"))
    assert stays.function("which")() == 1
    del stays
    assert Library(build(2), Path("base.so")).function("which")() == 2


def test_what_is_no_library(tmp_path: Path, where: str) -> None:
    with pytest.raises(LibraryInvalid, match=r"base\.so cannot be loaded"):
        Library(b"\x7fELF", Path("base.so"))


def test_a_function_that_is_not_there(build: Build) -> None:
    with pytest.raises(KernelMissing, match=r"base\.so does not export 'nothing'"):
        Library(build(1), Path("base.so")).function("nothing")
