"""One way to a text file, whatever it is made of."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from dsv3c.compiler.checkpoint.errors import UnknownVocabularyError
from dsv3c.compiler.checkpoint.sides import (
    TOKENIZER,
    TOKENIZER_CONFIG,
    side_bytes,
    side_folder,
    side_object,
    side_path,
    usable_tokenizer,
    write_sides,
)
from tests.gguf_files import write_gguf

VOCABULARY = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))
KIMI = {"auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]}}
KEYS = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "kimi-k2", "tokenizer.ggml.merges": ["a b"]}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "source" / "config.json").write_text("{}")
    return tmp_path / "source"


def test_a_tokenizer_is_copied_as_it_is_whatever_lies_beside(source: Path, tmp_path: Path) -> None:
    (source / TOKENIZER).write_bytes(b"\x00\xff{}")
    (source / "tiktoken.model").write_bytes(b"of no use")
    write_sides(source, tmp_path / "target")
    assert names(tmp_path / "target") == [TOKENIZER]
    assert (tmp_path / "target" / TOKENIZER).read_bytes() == b"\x00\xff{}"
    with side_folder(source) as folder:
        assert folder == source


def test_a_vocabulary_stands_for_the_tokenizer_everywhere(source: Path, tmp_path: Path) -> None:
    (source / "tiktoken.model").write_bytes(VOCABULARY)
    (source / TOKENIZER_CONFIG).write_text(json.dumps(KIMI))
    made = side_bytes(source, TOKENIZER)
    assert made is not None and usable_tokenizer(source) == made
    assert (side_object(source, TOKENIZER) or {})["model"]["vocab"]["a"] == 97
    assert side_path(source, TOKENIZER) == source / "tiktoken.model"
    with side_folder(source) as folder:
        assert names(folder) == [TOKENIZER, TOKENIZER_CONFIG] and (folder / TOKENIZER).read_bytes() == made


def test_of_a_vocabulary_that_cannot_be_used_nothing_is_written(source: Path, tmp_path: Path) -> None:
    (source / "tiktoken.model").write_bytes(VOCABULARY)
    with pytest.raises(UnknownVocabularyError):
        side_bytes(source, TOKENIZER)
    assert usable_tokenizer(source) is None
    write_sides(source, tmp_path / "target")
    assert not names(tmp_path / "target")


def test_the_keys_of_a_gguf_file_go_before_what_lies_beside_it(source: Path) -> None:
    write_gguf(source / "model.gguf", KEYS | {"tokenizer.ggml.tokens": ["a", "b", "ab"]}, {})
    (source / TOKENIZER).write_text("{}")
    made = side_object(source / "model.gguf", TOKENIZER) or {}
    assert made["model"]["vocab"] == {"a": 0, "b": 1, "ab": 2}
    assert side_path(source / "model.gguf", TOKENIZER) == source / "model.gguf"
    with side_folder(source / "model.gguf") as folder:
        assert names(folder) == [TOKENIZER, TOKENIZER_CONFIG]
