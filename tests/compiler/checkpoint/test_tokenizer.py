from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsv3c.compiler.checkpoint.tokenizer import check_tokenizer
from dsv3c.compiler.errors import JsonError, TokenizerVocabularyError


def write(folder: Path, vocab: Any, added: Any = ()) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": added}))


def test_ids_within_the_vocabulary_pass(tmp_path: Path) -> None:
    check_tokenizer(tmp_path, 1)
    write(tmp_path, {"a": 0, "b": 2}, [{"id": 3, "content": "<s>"}])
    check_tokenizer(tmp_path, 4)
    write(tmp_path, [["a", -1.0], ["b", -2.0]], None)
    check_tokenizer(tmp_path, 2)


def test_the_bundled_tokenizer_fits_its_model(bundled_model: Path) -> None:
    check_tokenizer(bundled_model, 2048)
    with pytest.raises(TokenizerVocabularyError, match="below vocab_size 2047"):
        check_tokenizer(bundled_model, 2047)


@pytest.mark.parametrize(
    ("vocab", "added", "reason"),
    [
        ({"a": 0, "b": 4}, [], "'b' has id 4, expected an id below vocab_size 4"),
        ({"a": -1}, [], "id -1"),
        ({"a": "0"}, [], "id '0'"),
        ({"a": True}, [], "id True"),
        ([["a", 0.0]] * 5, [], "id 4"),
        ({"a": 0}, [{"id": 9, "content": "<s>"}], "'<s>' has id 9"),
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
