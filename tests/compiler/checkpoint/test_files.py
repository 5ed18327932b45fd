from __future__ import annotations

import contextlib
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3c.compiler.checkpoint.errors import JsonError, UnreadableFileError
from dsv3c.compiler.checkpoint.files import MAX_JSON_VALUES, exists, parse_object, quote, read_bytes, read_object


@pytest.mark.parametrize(
    ("text", "reason"),
    {
        "empty": (b"", "Expecting value"),
        "null": (b"null", "expected an object"),
        "list": (b"[1]", "expected an object"),
        "zero bytes": (bytes(20), "Expecting value"),
        "not UTF-8": (b'{"a": "\xc3"}', "not UTF-8"),
        "cut": (b'{"a": 1', "Expecting"),
        "trailing": (b"{} 1", "Extra data"),
        "NaN": (b'{"a": NaN}', "NaN"),
        "Infinity": (b'{"a": -Infinity}', "Infinity"),
        "number too large": (b'{"a": 1e999}', "too large"),
        "integer of a million digits": (b'{"a":' + b"9" * 1_000_000 + b"}", "has 1000000 digits"),
        "fraction of a million digits": (b'{"a":' + b"9" * 1_000_000 + b".5}", "too large"),
        "duplicate key": (b'{"a": 1, "b": 2, "a": 3}', "'a' is given twice"),
        "duplicate key inside": (b'{"c": [{"a": 1, "a": 3}]}', "'a' is given twice"),
        "deep list": (b'{"a":' + b"[" * 200_000, "nested too deeply"),
        "deep object": (b'{"a":' * 200_000, "nested too deeply"),
    }.values(),
)
def test_what_is_not_one_strict_object_is_refused(text: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(JsonError, match=reason):
        read_object(tmp_path / "config.json")


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_object(tmp_path / "config.json") == {"a": 1}


@pytest.mark.parametrize("value", [b"[]", b"{}", b"1", b'"x"'])
def test_too_many_values_are_refused_before_any_is_made(value: bytes) -> None:
    data = b'{"a":[' + (value + b",") * MAX_JSON_VALUES + b"0]}"
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"more than {MAX_JSON_VALUES} values"):
        parse_object(data)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_a_config_has_no_more_than_a_megabyte(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}" + b" " * (1 << 20))
    with pytest.raises(UnreadableFileError, match="longer than 1048576 bytes"):
        read_object(tmp_path / "config.json")


@given(st.binary(max_size=100))
def test_any_bytes_parse_or_raise_value_error(data: bytes) -> None:
    for text in (data, b'{"a":' + data + b"}"):
        with contextlib.suppress(ValueError):
            assert isinstance(parse_object(text), dict)


def test_reads_are_bounded_and_only_of_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(11))
    assert len(read_bytes(tmp_path / "a", limit=11)) == 11
    with pytest.raises(UnreadableFileError, match="longer than 10 bytes"):
        read_bytes(tmp_path / "a", limit=10)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableFileError, match="not a regular file"):
        read_bytes(tmp_path / "pipe", limit=10)


def test_links_are_followed_to_files_alone(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("{}")
    os.mkfifo(tmp_path / "pipe")
    targets = {"good": "real", "none": "absent", "loop": "loop", "folder": ".", "device": "/dev/zero", "waits": "pipe"}
    for name, target in targets.items():
        (tmp_path / name).symlink_to(target)
        assert exists(tmp_path / name)
    assert read_object(tmp_path / "good") == {}
    reasons = {
        "none": "it is a link to absent: No such file",
        "loop": "it is a link to loop: Too many levels",
        **dict.fromkeys(("folder", "device", "waits"), "it is not a regular file"),
    }
    for name, reason in reasons.items():
        with pytest.raises(UnreadableFileError, match=reason):
            read_bytes(tmp_path / name, limit=10)


def test_quotes_stay_short_and_printable() -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    for value in (deep, "x" * 10**6, "\ud800\x1b", 10**4000, {"a": list(range(1000))}):
        text = quote(value)
        assert len(text) < 400
        assert text.isprintable()
        text.encode()


def test_reading_sets_aside_the_size_of_the_file_and_not_the_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    tracemalloc.start()
    try:
        assert len(read_bytes(tmp_path / "file", 1 << 32)) == 1000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
