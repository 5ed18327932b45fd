"""The safetensors header: what it says must be true of the file."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c.runtime import errors
from dsv3c.runtime.artifact.weights import parse_header, read_header
from tests.runtime import toy


def read(path: Path) -> Any:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read_header(descriptor)
    finally:
        os.close(descriptor)


def header(**tensors: Any) -> bytes:
    return json.dumps(tensors).encode()


def tensor(begin: int, end: int, shape: Any = None, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def test_tensors_start_on_a_64_byte_boundary(tmp_path: Path) -> None:
    data = toy.weights_bytes({"a": np.ones(3, np.float32), "b": np.ones((2, 5), np.float32)})
    (tmp_path / "w").write_bytes(data)
    found = read(tmp_path / "w")
    assert {name: (t.shape, t.offset % 64) for name, t in found.items()} == {"a": ((3,), 0), "b": ((2, 5), 0)}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 0),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", (64 << 20) + 1) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 3) + b" {}",
        struct.pack("<Q", 2) + b"{\xff",
        struct.pack("<Q", 200_000) + b'{"a":' * 40_000,
        struct.pack("<Q", 2) + b"{}" + bytes(64),
    ],
    ids=[
        "empty", "7 bytes", "length 0", "length 2^63", "length above the limit", "length above the file",
        "a list", "a space first", "not utf-8", "deep", "trailing bytes",
    ],
)  # fmt: skip
def test_file_is_no_safetensors(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "w").write_bytes(data)
    with pytest.raises(errors.WeightsInvalid):
        read(tmp_path / "w")


@pytest.mark.parametrize(
    "content",
    [
        b'{"a":1,"a":1}',
        header(a=1),
        header(a={"dtype": "U8", "shape": [1]}),
        header(a=tensor(0, 1, dtype="F7")),
        header(a=tensor(0, 1, shape=[-1])),
        header(a=tensor(0, 1, shape=[1.0])),
        header(a=tensor(0, 1, shape=[True])),
        header(a=tensor(0, 1, shape=[2**63])),
        header(a=tensor(0, 1, shape=[2**47] * 8)),
        header(a=tensor(0, 1, shape=[1] * 9)),
        header(a=tensor(0, 1, shape=[2**47] * 1_000_000)),
        header(a=tensor(0, 1, shape=[1] * 2_000_000)),
        header(a=tensor(0, 1, shape=[2])),
        header(a=tensor(0, 1, shape=1)),
        header(a=tensor(0, 4, shape=[2], dtype="F32")),
        header(a={"dtype": "U8", "shape": [1], "data_offsets": [1, 0]}),
        header(a={"dtype": "U8", "shape": [1], "data_offsets": [0]}),
        header(a={"dtype": "U8", "shape": [1], "data_offsets": [-1, 0]}),
        header(a={"dtype": "U8", "shape": [1], "data_offsets": [0, 2**70]}),
        header(a=tensor(0, 9), b=tensor(8, 10)),
        header(a=tensor(0, 1), b=tensor(80, 81)),
        header(a=tensor(0, 2000)),
        header(a=tensor(100, 101)),
        header(__metadata__={"a": 1}),
        header(__metadata__=[]),
    ],
    ids=lambda value: value.decode()[:60],
)
def test_header_lies(content: bytes) -> None:
    with pytest.raises(errors.WeightsInvalid):
        parse_header(content, 8 + len(content) + 1000)


def test_padding_below_an_alignment_is_accepted() -> None:
    content = header(a=tensor(0, 1), b=tensor(64, 65), empty=tensor(1, 1, shape=[0, 5]))
    assert parse_header(content, 8 + len(content) + 128)["b"].bytes == 1
