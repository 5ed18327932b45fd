"""How a text is cut, what of it is predicted, and which files are no text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dsv3c.runtime.errors import FileUnreadable, ParameterInvalid, TextFileInvalid, TextTooShort
from dsv3c.runtime.measure.windows import LEAST_TOKENS, Bos, Settings, Text, Window, beginning, cut, read_text, windows
from dsv3c.runtime.text.tokenizer import Tokenizer
from tests.checkpoints import write_tokenizer

TEXT = Text("a text", "", "")


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


def listed(begin: np.ndarray, count: int, context: int, bos: Bos) -> list[tuple[list[int], list[int], int]]:
    tokens = np.arange(10, 10 + count, dtype=np.int32)
    found = windows(begin, tokens, context, bos)
    return [(window.tokens.tolist(), window.targets.tolist(), window.first) for window in found]


def test_a_window_begins_with_the_last_token_that_the_one_before_predicted() -> None:
    assert listed(ids(0), 7, 3, "text") == [
        ([0, 10, 11], [10, 11, 12], 0),
        ([12, 13, 14], [13, 14, 15], 0),
        ([15], [16], 0),
    ]


def test_a_bos_before_each_window_takes_the_place_of_a_token_that_is_read() -> None:
    assert listed(ids(0), 7, 3, "window") == [
        ([0, 10, 11], [10, 11, 12], 0),
        ([0, 13, 14], [13, 14, 15], 0),
        ([0], [16], 0),
    ]


@pytest.mark.parametrize("bos", ["text", "window"])
def test_without_a_bos_the_first_token_is_not_predicted(bos: Bos) -> None:
    assert listed(ids(), 4, 3, bos) == [([10, 11, 12], [11, 12, 13], 0)]


def test_what_begins_a_text_is_never_predicted() -> None:
    assert listed(ids(1, 2), 3, 3, "text") == [([1, 2, 10], [2, 10, 11], 1), ([11], [12], 0)]
    assert listed(ids(1, 2), 3, 3, "window") == [([1, 2, 10], [2, 10, 11], 1), ([1, 2], [2, 12], 1)]


@pytest.mark.parametrize("begin", [ids(), ids(0), ids(1, 2)])
@pytest.mark.parametrize("bos", ["text", "window"])
@pytest.mark.parametrize("context", [3, 7, 64])
def test_every_token_is_predicted_once(begin: np.ndarray, bos: Bos, context: int) -> None:
    tokens = np.arange(10, 110, dtype=np.int32)
    found = cut(TEXT, begin, tokens, context, Settings(bos=bos))
    predicted = np.concatenate([window.targets[window.first :] for window in found])
    assert predicted.tolist() == tokens[0 if begin.size else 1 :].tolist()
    assert all(1 <= window.tokens.size <= context for window in found)


@pytest.mark.parametrize("begin", [ids(), ids(0)])
def test_only_the_first_tokens_count_when_asked(begin: np.ndarray) -> None:
    found = cut(TEXT, begin, np.arange(100, dtype=np.int32), 16, Settings(tokens=40))
    assert sum(window.counted for window in found) == 40


def test_a_text_that_is_too_short_says_how_much_is_needed() -> None:
    enough = np.zeros(LEAST_TOKENS, np.int32)
    assert cut(TEXT, ids(0), enough, 16, Settings())
    with pytest.raises(TextTooShort, match=f"it has {LEAST_TOKENS} tokens, at least {LEAST_TOKENS + 1}"):
        cut(TEXT, ids(), enough, 16, Settings())


def test_a_window_must_hold_more_than_what_begins_it() -> None:
    with pytest.raises(ParameterInvalid, match="context is 2: with the 2 tokens that begin a text"):
        list(windows(ids(1, 2), ids(3, 4), 2, "window"))


def test_counted_leaves_out_what_goes_before() -> None:
    assert Window(ids(1, 2, 3), ids(2, 3, 4), 1).counted == 2


def test_a_text_is_read_with_its_hash(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfabc")
    text = read_text(tmp_path / "a.txt")
    digest = "1c28dc3f1f804a1ad9c9b4b4cf5e2658d16ad4ed08e3020d04a8d2865018947c"
    assert (text.name, text.content, text.sha256) == ("a.txt", "abc", digest)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"abc\xff", "byte 3 is not UTF-8"),
        (b"", "it is empty"),
        (b" \n\n", "it is empty"),
        (b"ab\0c", "as binary files have"),
    ],
)
def test_what_is_no_text_is_told(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(TextFileInvalid, match=says):
        read_text(tmp_path / "a.txt")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileUnreadable, match="No such file"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("config", "expected"),
    [({}, []), ({"bos_token": "<b>", "add_bos_token": True}, [0]), ({"bos_token": "<b>", "add_bos_token": False}, [])],
)
def test_a_text_begins_as_the_tokenizer_says(config: dict[str, object], expected: list[int], tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 96)
    assert beginning(Tokenizer(tmp_path / "tokenizer.json", config)).tolist() == expected


def test_all_that_a_post_processor_puts_first_begins_a_text(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 96)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    pieces = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ("<e>", "<b>")]
    single = [*pieces, {"Sequence": {"id": "A", "type_id": 0}}, pieces[0]]
    special = {name: {"id": name, "ids": [i], "tokens": [name]} for i, name in enumerate(("<b>", "<e>"))}
    processor = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}
    path.write_text(json.dumps(content | {"post_processor": processor}))
    assert beginning(Tokenizer(path, {})).tolist() == [1, 0]
