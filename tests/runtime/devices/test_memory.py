"""Aligned memory and mapped files."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c.runtime import errors
from dsv3c.runtime.artifact.plan import Buffer
from dsv3c.runtime.devices.memory import Block, cache_offsets, map_descriptor, typed


@pytest.mark.parametrize("size", [0, 1, 64, 5000, 5 << 20])
def test_block_is_aligned_and_zero(size: int) -> None:
    block = Block(size, "a test")
    assert (block.data.size, block.data.ctypes.data % 64) == (size, 0)
    assert not block.data.any()
    assert 0 <= block.huge_bytes() <= size


@pytest.mark.parametrize("size", [2**46, 2**62, 2**80])
def test_memory_refused(size: int) -> None:
    with pytest.raises(errors.MemoryRefused, match="for a test"):
        Block(size, "a test")


def test_memory_lives_as_long_as_a_view() -> None:
    view = typed(Block(4096, "a test").data, 64, "float32", 16)
    gc.collect()
    view[:] = 1
    assert view.sum() == 16


def test_bfloat16_is_viewed_as_its_bits() -> None:
    assert typed(Block(64, "a test").data, 0, "bfloat16", 8).dtype == np.uint16


def mapped(path: Path, size: int) -> Any:
    return map_descriptor(os.open(path, os.O_RDONLY), path, size)


def test_map_file(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(range(256)))
    data = mapped(tmp_path / "w", 256)
    np.testing.assert_array_equal(data, np.arange(256))


def test_map_file_of_another_size(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"12")
    with pytest.raises(errors.FileSizeWrong):
        mapped(tmp_path / "w", 3)


def test_writing_to_a_mapped_file_faults(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(64))
    code = (
        "import os, pathlib\nfrom dsv3c.runtime.devices.memory import map_descriptor\n"
        f"path = pathlib.Path({str(tmp_path / 'w')!r})\n"
        "map_descriptor(os.open(path, os.O_RDONLY), path, 64)[0] = 1\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode < 0
    assert (tmp_path / "w").read_bytes() == bytes(64)


def test_caches_of_other_widths_lie_behind_each_other_on_boundaries() -> None:
    caches = [Buffer("cache.0", "cache", "bfloat16", 0, width=40), Buffer("cache.0.codes", "cache", "int8", 0, width=3)]
    assert cache_offsets([*caches, Buffer("cache.1", "cache", "float32", 0, width=1)], 7, 64) == (
        {"cache.0": 0, "cache.0.codes": 576, "cache.1": 640},
        704,
    )
    assert cache_offsets([], 7, 64) == ({}, 0)
