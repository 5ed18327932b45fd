from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsv3c.compiler.checkpoint.errors import JsonError, TokenizerVocabularyError
from dsv3c.compiler.checkpoint.tokenizer import check_tokenizer, usable_ids


def write(folder: Path, vocab: Any, added: Any = ()) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": added}))


def test_ids_within_the_vocabulary_pass(tmp_path: Path) -> None:
    check_tokenizer(tmp_path, 1)
    write(tmp_path, {"a": 0, "b": 2}, [{"id": 3, "content": "<s>"}])
    check_tokenizer(tmp_path, 4)
    write(tmp_path, [["a", -1.0], ["b", -2.0]], None)
    check_tokenizer(tmp_path, 2)


def test_tokens_that_the_model_has_no_row_for_are_told(bundled_model: Path, tmp_path: Path) -> None:
    assert check_tokenizer(bundled_model, 2048) == ()
    assert "has 1 tokens beyond the vocab_size of 2047" in check_tokenizer(bundled_model, 2047)[0]
    write(tmp_path, {"a": 0, "b": 4}, [{"id": 9, "content": "<s>"}, {"id": 4, "content": "<t>"}])
    (note,) = check_tokenizer(tmp_path, 4)
    assert "has 2 tokens beyond" in note and "'<t>' with id 4" in note


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, {"a": 0})
    (tmp_path / "tokenizer.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "tokenizer.json").read_bytes())
    assert check_tokenizer(tmp_path, 1) == ()


@pytest.mark.parametrize(
    ("key", "found", "kept", "noted"),
    [
        ("pad_token_id", -1, None, True),
        ("pad_token_id", 96, None, True),
        ("pad_token_id", 95, 95, False),
        ("bos_token_id", [0], 0, False),
        ("bos_token_id", [0, 1], None, True),
        ("bos_token_id", [], None, False),
        ("bos_token_id", 10**30, None, True),
        ("eos_token_id", [1, 96], [1], True),
        ("eos_token_id", 96, [], True),
        ("eos_token_id", 1, [1], False),
        *((key, "</s>", "</s>", False) for key in ("bos_token_id", "eos_token_id", "pad_token_id")),
        ("eos_token_id", [True], [True], False),
    ],
)
def test_ids_that_the_model_has_no_row_for_are_left_out(key: str, found: Any, kept: Any, noted: bool) -> None:
    values, notes = usable_ids({"vocab_size": 96, key: found})
    assert values[key] == kept
    assert [key in note for note in notes] == [True] * noted
    assert usable_ids({"vocab_size": "x", key: found}) == ({"vocab_size": "x", key: found}, ())


@pytest.mark.parametrize(
    ("vocab", "added", "reason"),
    [
        ({"a": 0, "b": 2**24}, [], "'b' has id 16777216, expected an id below 16777216"),
        ({"a": -1}, [], "id -1"),
        ({"a": "0"}, [], "id '0'"),
        ({"a": True}, [], "id True"),
        ({"a": 0}, [{"id": 10**30, "content": "<s>"}], "'<s>' has id 1000"),
        ({"a": 0}, [{"content": "<s>"}], "id None"),
        ({"a": 0}, ["<s>"], "added_tokens"),
        ({"a": 0}, {"x": 1}, "added_tokens"),
        (None, [], "no model.vocab"),
    ],
)
def test_a_bad_vocabulary_is_refused(vocab: Any, added: Any, reason: str, tmp_path: Path) -> None:
    write(tmp_path, vocab, added)
    with pytest.raises(TokenizerVocabularyError, match=reason):
        check_tokenizer(tmp_path, 4)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"model": 1, "model": 2}'])
def test_a_malformed_file_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(JsonError):
        check_tokenizer(tmp_path, 4)
