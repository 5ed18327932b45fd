from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dsv3c.compiler.checkpoint.errors import UnreadableFileError
from dsv3c.compiler.errors import (
    BinaryCalibrationError,
    CalibrationLineError,
    EmptyCalibrationError,
    ShortCalibrationError,
)
from dsv3c.compiler.quantisation.calibration.text import DEFAULT, LENGTH, read
from dsv3c.runtime.text.tokenizer import Tokenizer
from tests.checkpoints import write_tokenizer

LIMIT = 1 << 15
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ '!' if add_generation_prompt }}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One id a character; those that it has none for are left out."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, 96)
    return Tokenizer(folder / "tokenizer.json", {}, TEMPLATE)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_text_becomes_sequences_in_its_order(tokenizer: Tokenizer, tmp_path: Path) -> None:
    content = "".join(chr(32 + i % 90) for i in range(3 * LENGTH + 7))
    found = read(write(tmp_path / "a.txt", content), tokenizer, LIMIT)
    assert [len(ids) for ids in found.sequences] == [LENGTH, LENGTH, LENGTH, 7]
    assert np.concatenate(found.sequences).tolist() == tokenizer.encode(content)
    assert (found.name, found.tokens) == ("a.txt", len(content))
    assert all(ids.dtype == np.int32 for ids in found.sequences)


def test_no_more_tokens_than_asked_for(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "some words and more\n" * 10_000)
    found = read(path, tokenizer, 3 * LENGTH + 100)
    assert [len(ids) for ids in found.sequences] == [LENGTH, LENGTH, LENGTH, 100]


def test_a_long_file_is_not_read_to_its_end(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"word \xc3\xa4\n" * 30_000 + b"\xff\x00")
    assert read(path, tokenizer, 1024).tokens == 1024


def test_lines_are_texts_or_chats(tokenizer: Tokenizer, tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x" * 600}]}
    lines = [json.dumps({"text": "y" * 900}), "", json.dumps(chat), json.dumps({"text": "z"})]
    found = read(write(tmp_path / "a.jsonl", "\n".join(lines)), tokenizer, LIMIT)
    texts = [tokenizer.decode(ids.tolist()) for ids in found.sequences]
    assert texts[:2] == ["y" * LENGTH, "y" * (900 - LENGTH)]
    assert "".join(texts[2:]) == f"user: hi\nassistant: {'x' * 600}\n".replace("\n", "")  # no id stands for a break
    assert min(map(len, found.sequences)) > 1  # one token alone tells nothing of attention


@pytest.mark.parametrize("content", ["", "\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(content: str | bytes, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(EmptyCalibrationError, match=r"a\.txt is empty"):
        read(write(tmp_path / "a.txt", content), tokenizer, LIMIT)


@pytest.mark.parametrize(("content", "at"), [(b"text \xff\xfe", 5), (b"GGUF\x00\x01", 4), (b"\x89PNG\r\n", 0)])
def test_a_binary_file_is_refused_with_the_place(content: bytes, at: int, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(BinaryCalibrationError, match=f"byte {at} is not UTF-8, or a zero"):
        read(write(tmp_path / "a.bin", content), tokenizer, LIMIT)


def test_a_short_file_is_refused_with_what_is_needed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ShortCalibrationError, match=r"has 1000 tokens .* needs 1024 or more"):
        read(write(tmp_path / "a.txt", "x" * 1000), tokenizer, LIMIT)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "it is no JSON"),
        ("plain words", "it is no JSON"),
        ("[1]", 'it has neither a "text" nor "messages"'),
        ('{"text": 1}', 'it has neither a "text" nor "messages"'),
        ('{"prompt": "x"}', 'it has neither a "text" nor "messages"'),
        ('{"messages": []}', "must be a list of at least one message"),
        ('{"messages": [{"content": "x"}]}', "message 0 has no string `role`"),
    ],
)
def test_a_line_that_is_neither_is_named(line: str, reason: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(CalibrationLineError, match=r"a\.jsonl, line 3: .*") as caught:
        read(path, tokenizer, LIMIT)
    assert reason in str(caught.value)


def test_chats_without_a_template_say_which_line_wants_one(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 96)
    path = write(tmp_path / "a.jsonl", '{"messages": [{"role": "user", "content": "hi"}]}')
    with pytest.raises(CalibrationLineError, match=r"line 1: .*template"):
        read(path, Tokenizer(tmp_path / "tokenizer.json", {}), LIMIT)


def test_a_file_that_is_not_there_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="nothing"):
        read(tmp_path / "nothing.txt", tokenizer, LIMIT)


def test_our_own_text_is_long_enough_and_of_several_kinds(tokenizer: Tokenizer) -> None:
    found = read(None, tokenizer, LIMIT)
    assert found.name == ""
    text = DEFAULT.read_text(encoding="utf-8")
    assert 16_000 < len(text.encode()) < 32_000
    for part in ("def ", "#include", "SELECT", "的", "ist ", " est ", "не ", "{\n"):
        assert part in text, part
