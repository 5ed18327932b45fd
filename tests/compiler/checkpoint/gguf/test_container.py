from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.compiler.checkpoint import Checkpoint, gguf
from dsv3c.compiler.checkpoint.errors import ChangedFileError, GgufFormatError, UnreadableFileError
from dsv3c.compiler.checkpoint.gguf.container import MAX_KEYS, MAX_STRINGS, MAX_TENSORS, GgufFile
from dsv3c.compiler.errors import CheckpointError
from tests.checkpoints import random_tensors, tiny_config
from tests.gguf_files import array, entry, gguf_tensors, key, keys_of, raw_file, text, write_gguf

ONE = entry("w", (32,))
ALIGNED = [key("general.alignment", 4, struct.pack("<I", 64))]
STRINGS = array(8, 2, text("a") + text("b"))

# What reports of faults in readers of GGUF are about: counts, sizes, offsets, types, strings and nesting.
BAD_FILES = {
    "empty": (b"", "it is empty"),
    "magic": (raw_file(start=b"GGML\x03\0\0\0"), "begins with 'GGML'"),
    "magic alone": (b"GGUF", "version is 0"),
    "version 0": (raw_file(start=b"GGUF" + bytes(4)), "version is 0, 2 and 3 are read"),
    "version 1, with counts of 32 bits": (raw_file(start=b"GGUF\x01\0\0\0"), "version is 1"),
    "version 4": (raw_file(start=b"GGUF\x04\0\0\0"), "version is 4"),
    "big-endian": (raw_file(start=b"GGUF\0\0\0\x03"), "big-endian"),
    "cut in the counts": (raw_file()[:20], "number of keys reaches beyond the end"),
    "2^64-1 tensors": (raw_file(n_tensors=2**64 - 1), f"at most {MAX_TENSORS} are read"),
    "2^62 tensors": (raw_file(n_tensors=2**62), f"at most {MAX_TENSORS} are read"),
    "more tensors than entries": (raw_file([], [ONE], n_tensors=2, body=128), "not 1 to 4|reaches beyond|has no name"),
    "2^64-1 keys": (raw_file(n_keys=2**64 - 1), f"at most {MAX_KEYS} are read"),
    "more keys than there are": (raw_file([key("a")], n_keys=2), "name of key 1 reaches beyond"),
    "key longer than the file": (raw_file([text("a", 2**40)], n_keys=1), "at most 65536"),
    "key of 2^64-1 bytes": (raw_file([text("a", 2**64 - 1)], n_keys=1), "is 18446744073709551615"),
    "key without a name": (raw_file([key("")]), "key 0 has no name"),
    "key not UTF-8": (raw_file([key(b"\xff")]), "not UTF-8"),
    "key twice": (raw_file([key("a"), key("a")]), "'a' is given twice"),
    "type 13 of a key": (raw_file([key("a", 13)]), "type 13"),
    "type 2^32-1 of a key": (raw_file([key("a", 2**32 - 1)]), "type 4294967295"),
    "value cut": (raw_file([key("a", 10, bytes(4))]), "'a' reaches beyond"),
    "string longer than the file": (raw_file([key("a", 8, text("b", 2**40))]), "1099511627776 bytes, at most"),
    "string of 2^64-1 bytes": (raw_file([key("a", 8, text("b", 2**64 - 1))]), "length of the key 'a' is"),
    "string not UTF-8": (raw_file([key("a", 8, text(b"\xff"))]), "not UTF-8"),
    "array of 2^64-1 numbers": (raw_file([key("a", 9, array(4, 2**64 - 1))]), "'a' reaches beyond"),
    "array of 2^61 numbers, whose bytes wrap to 0": (raw_file([key("a", 9, array(10, 2**61))]), "'a' reaches beyond"),
    "array of 2^64-1 strings": (raw_file([key("a", 9, array(8, 2**64 - 1))]), f"of the {MAX_STRINGS}"),
    "array of strings that are not there": (raw_file([key("a", 9, array(8, 1000))]), "has 1000 strings, for which 0"),
    "string in an array too long": (raw_file([key("a", 9, array(8, 1, text("b", 2**63)))]), "string 0 of the key"),
    "array of type 13": (raw_file([key("a", 9, array(13, 1, bytes(8)))]), "type 13"),
    "array of arrays": (raw_file([key("a", 9, array(9, 1, STRINGS))]), "array of arrays"),
    "arrays 1000 deep": (raw_file([key("a", 9, array(9, 1) * 1000)]), "array of arrays"),
    "alignment 0": (raw_file([key("general.alignment")], [ONE], body=128), "expected a power of two"),
    "alignment 3": (raw_file([key("general.alignment", 4, struct.pack("<I", 3))], [ONE]), "expected a power of two"),
    "alignment 2^31": (raw_file([key("general.alignment", 4, struct.pack("<I", 2**31))], [ONE]), "expected a power"),
    "alignment a text": (raw_file([key("general.alignment", 8, text("32"))], [ONE]), "expected a power of two"),
    "tensor without a name": (raw_file([], [entry("")], body=128), "has no name"),
    "tensor with a name of 65 bytes": (raw_file([], [entry("w" * 65)], body=128), "65 bytes, at most 64"),
    "tensor with a name not UTF-8": (raw_file([], [entry(b"\xff")], body=128), "not UTF-8"),
    "tensor twice": (raw_file([], [ONE, entry("w", offset=128)], body=256), "'w' is given twice"),
    "tensor twice, by another name": (
        raw_file([], [entry("output.weight"), entry("lm_head.weight", offset=128)], body=256),
        "given twice",
    ),
    "no dims": (raw_file([], [entry(dims=())], body=128), "expected 1 to 4 above 0"),
    "five dims": (raw_file([], [entry(dims=(1,) * 5)], body=128), "is 5, at most 4"),
    "2^32-1 dims": (raw_file([], [entry(rank=2**32 - 1)], body=128), "is 4294967295, at most 4"),
    "a dim of 0": (raw_file([], [entry(dims=(32, 0))], body=128), "expected 1 to 4 above 0"),
    "a dim of 2^64-1": (raw_file([], [entry(dims=(2**64 - 1,))], body=128), "overflows"),
    "product of dims overflows": (raw_file([], [entry(dims=(2**32, 2**32))], body=128), "overflows"),
    "product of dims wraps to 32": (raw_file([], [entry(dims=(2**33, 2**31, 32, 1))], body=128), "overflows"),
    "bytes overflow": (raw_file([], [entry(dims=(2**62,))], body=128), "overflows"),
    "size wraps with its padding": (raw_file([], [entry(dims=(2**61 - 1,))], body=128), "truncated"),
    "type 4, which was taken back": (raw_file([], [entry(kind=4)], body=128), "type 4, which is not read"),
    "type 2^32-1": (raw_file([], [entry(kind=2**32 - 1)], body=128), "type 4294967295"),
    "integers": (raw_file([], [entry(kind=26)], body=128), "type 26, which is not read; read are F32"),
    "row is no blocks": (raw_file([], [entry(dims=(33, 2), kind=2)], body=128), "no blocks of 32 of Q4_0"),
    "offset behind the end": (raw_file([], [entry(offset=2**40)], body=128), "has the offset 1099511627776"),
    "offset not aligned": (raw_file([], [entry(offset=1)], body=128), "offset 1, expected 0"),
    "offset of 2^64-32": (raw_file([], [entry(offset=2**64 - 32)], body=128), "has the offset"),
    "overlap": (raw_file([], [ONE, entry("v", offset=64)], body=256), "offset 64, expected 128"),
    "hole": (raw_file([], [ONE, entry("v", offset=256)], body=512), "offset 256, expected 128"),
    "data cut": (raw_file([], [ONE], body=127), "truncated"),
    "data cut behind another alignment": (raw_file(ALIGNED, [ONE, entry("v", offset=128)], body=128), "truncated"),
    "no data": (raw_file([], [ONE]), "truncated"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(name: str, tmp_path: Path) -> None:
    content, reason = BAD_FILES[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufFormatError, match=reason):
        GgufFile(path, gguf.known_as)


def test_a_large_header_costs_neither_time_nor_memory(tmp_path: Path) -> None:
    """Many strings, many keys, and a count that only the bytes of a sparse file bear out."""
    path = tmp_path / "model.gguf"
    header = raw_file([key("a", 9, array(8, MAX_STRINGS + 1))], n_keys=1)
    for content, size in ((header, 1 << 40), (raw_file([key("a", 9, array(0, 2**39))], n_keys=1), 1 << 40)):
        path.write_bytes(content)
        os.truncate(path, size)
        tracemalloc.start()
        started = time.thread_time()
        with pytest.raises(GgufFormatError):
            GgufFile(path)
        assert time.thread_time() - started < 1
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
        tracemalloc.stop()


def test_header_is_no_longer_than_what_is_read_of_one(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(raw_file([key("a", 9, array(0, 65 << 20))], n_keys=1))
    os.truncate(path, 100 << 20)
    with pytest.raises(GgufFormatError, match="that are read of a header"):
        GgufFile(path)


def test_pipe_and_missing_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for name in ("pipe.gguf", "absent.gguf"):
        with pytest.raises(UnreadableFileError):
            Checkpoint.open(tmp_path / name)


def test_values_of_every_type(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    numbers = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
    keys = [key(f"k{kind}", kind, struct.pack(format, 1)) for kind, format in numbers.items()]
    keys += [
        key("text", 8, text("ü")),
        key("texts", 9, STRINGS),
        key("list", 9, array(3, 2, struct.pack("<hh", -1, 2))),
    ]
    keys += [key("none", 9, array(4, 0))]
    path.write_bytes(raw_file(keys, [entry("a", (3, 2), 30), entry("b", (32, 2), 8, 32)], body=100))
    file = GgufFile(path)
    assert all(file.values[f"k{kind}"] == 1 for kind in numbers)
    assert file.values["text"] == "ü"
    assert file.values["texts"] == (b"a", b"b")
    np.testing.assert_array_equal(file.values["list"], [-1, 2])
    assert len(file.values["none"]) == 0
    assert (file.array("a").shape, file.array("a").dtype) == ((2, 3), np.uint16)
    assert (file.array("b").shape, file.array("b").dtype) == ((2, 34), np.uint8)


def test_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(raw_file([], [ONE], body=128))
    file = GgufFile(path)
    os.truncate(path, 100)
    with pytest.raises(ChangedFileError):
        file.array("w")


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose header takes about 10 kB."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    config = tiny_config(num_hidden_layers=2)
    tokenizer = {"model": "gpt2", "pre": "deepseek-v3", "tokens": ["<b>", "a", "b", "ab"], "merges": ["a b"]}
    tokenizer |= {"token_type": [3, 1, 1, 1]}
    keys = keys_of(config) | {f"tokenizer.ggml.{name}": value for name, value in tokenizer.items()}
    keys["tokenizer.chat_template"] = "{{ messages }}"
    write_gguf(path, keys, gguf_tensors(config, random_tensors(config)))
    return path


Mutation = tuple[int, int]
WORDS = (0, 2**31, 2**32, 2**62, 2**63, 2**64 - 1)


@settings(max_examples=50)
@given(
    mutations=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8),
    words=st.lists(
        st.tuples(st.integers(0, 1250), st.sampled_from((0, 2**31, 2**32, 2**62, 2**63, 2**64 - 1))), max_size=2
    ),
    cut=st.none() | st.integers(0, 12_000),
)
def test_any_change_of_a_header_is_read_or_refused(
    valid: Path, mutations: list[Mutation], words: list[Mutation], cut: int | None
) -> None:
    """Whatever bytes change: a checkpoint, or one of its errors; never another exception, much memory or time."""
    data = bytearray(valid.read_bytes())
    for at, value in mutations:
        data[at] = value
    for at, word in words:
        data[8 * at : 8 * at + 8] = struct.pack("<Q", word)
    path = valid.with_name("changed.gguf")
    path.write_bytes(data if cut is None else data[:cut])
    started = time.thread_time()
    try:
        checkpoint = Checkpoint.open(path)
        checkpoint.read("model.norm.weight")
        for name in gguf.TEXTS:
            gguf.text(path, name)
    except CheckpointError:
        pass
    assert time.thread_time() - started < 2
