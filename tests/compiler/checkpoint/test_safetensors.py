from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from dsv3c.compiler.checkpoint.errors import ChangedFileError, SafetensorsError, UnreadableFileError
from dsv3c.compiler.checkpoint.safetensors import DTYPE_BITS, SafetensorsFile, parse_header
from dsv3c.compiler.errors import CheckpointError
from tests.checkpoints import safetensors_bytes, write_safetensors

PATH = Path("model.safetensors")


def with_header(header: bytes | object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def one(**fields: Any) -> bytes:
    return with_header({"w": entry(**fields)}, bytes(4))


BAD_FILES = {
    "empty": (b"", "it is empty"),
    "seven bytes": (bytes(7), "fewer than the 8"),
    "header length 0": (bytes(8), "not a JSON object"),
    "header length 2^63": (struct.pack("<Q", 2**63) + b"{}", "above the limit"),
    "header length 2^64-1": (b"\xff" * 8 + b"{}", "above the limit"),
    "header length above 64 MB": (struct.pack("<Q", (64 << 20) + 1) + b"{}", "above the limit"),
    "header beyond the file": (struct.pack("<Q", 3) + b"{}", "beyond the file"),
    "header cut": (safetensors_bytes({"w": np.zeros(4, np.float32)})[:20], "beyond the file"),
    "not UTF-8": (with_header(b'{"\xff": 1}'), "not UTF-8"),
    "not JSON": (with_header(b"{]"), "not valid JSON"),
    "not an object": (with_header(b"[]"), "not a JSON object"),
    "leading space": (with_header(b" {}"), "not a JSON object"),
    "two objects": (with_header(b"{}{}"), "not valid JSON"),
    "NaN": (with_header(b'{"a": NaN}'), "NaN"),
    "deep nesting": (with_header(b'{"a":' + b"[" * 100_000), "nested too deeply"),
    "integer of 5000 digits": (with_header(b'{"a": ' + b"9" * 5000 + b"}"), "not valid JSON"),
    "duplicate names": (with_header(b'{"w": 1, "w": 1}'), "given twice"),
    "duplicate keys in a tensor": (with_header(b'{"w": {"dtype": "F32", "dtype": "F32"}}'), "given twice"),
    "metadata not an object": (with_header({"__metadata__": []}), "__metadata__"),
    "metadata not of strings": (with_header({"__metadata__": {"a": 1}}), "__metadata__"),
    "tensor not an object": (with_header({"w": 1}), "expected an object"),
    "missing key": (with_header({"w": {"dtype": "F32", "shape": [1]}}), "expected the keys"),
    "extra key": (one(extra=1), "expected the keys"),
    "unknown dtype": (one(dtype="F31"), "unknown dtype"),
    "dtype not a string": (one(dtype=[]), "unknown dtype"),
    "shape not a list": (one(shape=1), "not a list of sizes"),
    "negative extent": (one(shape=[-1]), "not a list of sizes"),
    "float extent": (one(shape=[1.0]), "not a list of sizes"),
    "bool extent": (one(shape=[True]), "not a list of sizes"),
    "extent 2^63": (one(shape=[2**63]), "not a list of sizes"),
    "product overflows": (one(shape=[2**32, 2**32]), "overflows"),
    "product overflows beside a zero": (one(shape=[0, 2**40, 2**40]), "overflows"),
    "nine dims": (one(shape=[1] * 9), "has 9 dims, at most 8"),
    "a million dims": (one(shape=[2**62] * 1_000_000), "has 1000000 dims"),
    "millions of dims": (one(shape=[1] * 3_000_000), "more than 1500000 values"),
    "millions of lists": (with_header(b'{"w":[' + b"[]," * 3_000_000 + b"[]]}"), "more than 1500000 values"),
    "bits are no bytes": (one(dtype="F4", shape=[3], offsets=[0, 2]), "whole number of bytes"),
    "size is not shape times dtype": (one(shape=[2]), "takes 8 bytes"),
    "one offset": (one(offsets=[0]), "not two offsets"),
    "negative offset": (one(offsets=[-4, 0]), "not two offsets"),
    "reversed offsets": (one(offsets=[4, 0]), "reversed"),
    "beyond the end": (with_header({"w": entry(shape=[2], offsets=[0, 8])}, bytes(4)), "truncated"),
    "hole at the start": (with_header({"w": entry(offsets=[4, 8])}, bytes(8)), "leaves a hole"),
    "hole between": (with_header({"a": entry(), "b": entry(offsets=[8, 12])}, bytes(12)), "leaves a hole"),
    "overlap": (with_header({"a": entry(shape=[2], offsets=[0, 8]), "b": entry(offsets=[4, 8])}, bytes(8)), "overlaps"),
    "same place twice": (with_header({"a": entry(), "b": entry()}, bytes(4)), "overlaps"),
    "trailing bytes": (with_header({"w": entry()}, bytes(5)), "1 bytes follow"),
    "data without tensors": (with_header({}, bytes(1)), "1 bytes follow"),
    "truncated data": (safetensors_bytes({"w": np.zeros(4, np.float32)})[:-1], "truncated"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_its_reason(case: str, tmp_path: Path) -> None:
    data, reason = BAD_FILES[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(SafetensorsError, match=reason) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", Path("/dev/zero"), tmp_path / "\0"):
        with pytest.raises(UnreadableFileError):
            SafetensorsFile(path)


def test_arrays_are_views_of_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "f32": rng.standard_normal((3, 5)).astype(np.float32),
        "f16": rng.standard_normal((3,)).astype(np.float16),
        "bf16": rng.standard_normal((2, 3)).astype(ml_dtypes.bfloat16),
        "f8": rng.standard_normal((5, 1)).astype(ml_dtypes.float8_e4m3fn),  # leaves the next one unaligned
        "odd": rng.standard_normal((2, 2)).astype(np.float32),
        "scalar": np.array(7, np.float32),
        "none": np.zeros((0, 4), np.float32),
    }
    write_safetensors(tmp_path / "a", tensors, {"format": "pt"})
    file = SafetensorsFile(tmp_path / "a")
    assert file.metadata == {"format": "pt"}
    for name, value in tensors.items():
        found = file.array(name)
        assert found.shape == value.shape == file.tensors[name].shape
        assert found.tobytes() == value.tobytes()
        assert not found.flags.writeable or found.size == 0
        assert not found.flags.owndata or found.size == 0
        file.release(file.tensors[name].begin, file.tensors[name].end)
        assert found.tobytes() == value.tobytes(), "a released view reads from the file again"


def test_metadata_may_be_null(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(with_header({"__metadata__": None, "w": entry("U8", [1], [0, 1])}, b"7"))
    with safe_open(tmp_path / "a", "np") as reference:
        assert list(SafetensorsFile(tmp_path / "a").tensors) == list(reference.keys()) == ["w"]


def test_every_dtype_of_the_format_has_a_view(tmp_path: Path) -> None:
    for dtype, bits in DTYPE_BITS.items():
        (tmp_path / dtype).write_bytes(with_header({"w": entry(dtype, [8], [0, bits])}, bytes(range(bits))))
        found = SafetensorsFile(tmp_path / dtype).array("w")
        assert found.nbytes == bits


def test_a_file_cut_while_open_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_safetensors(path, {"w": np.zeros(10_000, np.float32)})
    file = SafetensorsFile(path)
    with path.open("r+b") as handle:
        handle.truncate(100)
    with pytest.raises(ChangedFileError, match="has 100 now"):
        file.array("w")


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 64))
def test_any_header_bytes_parse_or_raise_the_typed_error(text: bytes, body_size: int) -> None:
    for header in (text, b"{" + text, b'{"w":' + text + b"}"):
        try:
            parse_header(header, body_size, PATH)
        except SafetensorsError as error:
            str(error).encode()


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["F32", "F4"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(sorted(DTYPE_BITS)) | JSON_VALUES,
        "shape": st.lists(st.integers(-1, 5) | st.integers(), max_size=4) | JSON_VALUES,
        "data_offsets": st.lists(st.integers(0, 80), min_size=2, max_size=2) | JSON_VALUES,
    },
    optional={"extra": JSON_VALUES},
)


@settings(max_examples=300)
@given(st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), ENTRIES | JSON_VALUES, max_size=4), st.binary())
def test_any_header_object_opens_or_raises_a_typed_error(tmp_path_factory: Any, header: Any, body: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(with_header(header, body))
    try:
        file = SafetensorsFile(path)
    except CheckpointError as error:
        str(error).encode()
        return
    assert sum(file.array(name).nbytes for name in file.tensors) == len(body)
