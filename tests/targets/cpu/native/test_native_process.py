"""What happens around the C library: files that change under it, two artifacts of one path, forks, old systems."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dsv3c.targets.cpu import native
from tests.targets.cpu.elf import glibc
from tests.targets.cpu.native.binding import Failure, Model
from tests.targets.cpu.native.conftest import USABLE

IDS = b"5 17 42\n"


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_it_loads_where_glibc_is_older(folder: Path) -> None:
    for name in ("libdsv3c_model.so", "dsv3c-run"):
        assert glibc(folder / "native" / name) <= (2, 28)


def test_weights_that_are_made_shorter_end_a_step(copy: Path) -> None:
    model = Model(copy)
    os.truncate(copy / "weights.safetensors", 8192)
    with pytest.raises(Failure, match=r"FILE_DAMAGED: weights\.safetensors could not be read while it was in use"):
        model.logits([1, 2, 3])
    model.close()


def test_the_program_says_so_and_fails(copy: Path) -> None:
    program = subprocess.Popen(
        [str(copy / "native" / "dsv3c-run"), "--ids", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    maps = Path(f"/proc/{program.pid}/maps")
    while b"memfd:dsv3c" not in maps.read_bytes():  # it has opened the model, and waits for its prompt
        assert program.poll() is None
    os.truncate(copy / "weights.safetensors", 8192)
    _, said = program.communicate(IDS)
    assert program.returncode == 1
    assert said.startswith(b"dsv3c-run: weights.safetensors could not be read while it was in use")


def test_closing_gives_threads_and_libraries_back(folder: Path) -> None:
    def counts() -> tuple[int, int, int]:
        maps = Path("/proc/self/maps").read_text()
        return maps.count("memfd:dsv3c"), len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    before = counts()
    for _ in range(5):
        models = [Model(folder, threads=3), Model(folder, threads=2)]
        for model in models:
            model.logits([1, 2, 3])
        assert len(os.listdir("/proc/self/task")) == before[1] + 3  # each has a pool of its own
        for model in models:
            model.close()
    assert counts() == before


def test_no_part_of_a_copy_is_left_where_there_is_no_room_for_it(copy: Path, tmp_path: Path) -> None:
    """On a system that has no files in memory."""
    native.build(copy / "native" / "src", copy / "native", flags=("-U__linux__",))
    (tmp_path / "temporary").mkdir()
    limited = ["bash", "-c", 'ulimit -f 8; exec "$0" --ids 1 ' + str(copy), str(copy / "native" / "dsv3c-run")]
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    done = subprocess.run(limited, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert done.stderr == "dsv3c-run: no place for a copy of the kernels: File too large\n"
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.needs("mounts")
def test_kernels_load_where_proc_is_not_mounted(folder: Path, tmp_path: Path) -> None:
    hidden = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "LD_LIBRARY_PATH": str(folder / "native")}
    command = [*hidden, str(folder / "native" / "dsv3c-run"), "--ids", "1", "-n", "1", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_kernels_are_those_that_were_checked(copy: Path) -> None:
    """Another library of this path is loaded already."""
    level = copy / "kernels" / f"{USABLE[-1]}.so"
    right = level.read_bytes()
    source = copy / "empty.c"
    source.write_text("int nothing;\n")
    level.unlink()
    subprocess.run(["cc", "-shared", "-o", str(level), str(source)], check=True)
    ctypes.CDLL(str(level))
    level.unlink()  # writing to what is loaded would change it
    level.write_bytes(right)
    model = Model(copy)
    model.logits([1, 2, 3])
    model.close()
