"""tiktoken vocabularies as tokenizer.json, against the package tiktoken."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tiktoken as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from dsv3c.compiler.checkpoint import tiktoken
from dsv3c.compiler.checkpoint.errors import TiktokenError, UnknownVocabularyError
from tests.conftest import BUNDLED_MODEL

PATTERN = (  # of tokenization_kimi.py in moonshotai/Kimi-K2-Instruct
    r"[\p{Han}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = {bytes([byte]): byte for byte in range(256)}
CONFIG: dict[str, Any] = {"auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]}}
PIECES = (
    *("a", "b", "AB", "ab", "the", "中文", "한글", "あ", "'s", "'LL", "'ſ", "ſ", "1", "234", "²", " ", "  ", "\u3000"),
    *("\n", "\r\n", "\t", "\u2028", "é", "e\u0301", "क्ष", "👩\u200d👩", "ǅ", "ʰ", "_", "(", "…", "<|end|>", "[BOS]"),
)


def write(folder: Path, ranks: Mapping[bytes, int]) -> Path:
    path = folder / "tiktoken.model"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return path


@cache
def trained() -> dict[bytes, int]:
    """Ranks as training gives them, of the bundled text and of letters that repeat."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    text = (BUNDLED_MODEL / "eval.txt").read_text(encoding="utf-8")[:100_000]
    repeated = "aaaaaaa abababa bababab 中文中文 中中中 한글한 \n\n\n      "
    trainer = trainers.BpeTrainer(
        vocab_size=900, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer.train_from_iterator([text, repeated * 50], trainer)
    to_bytes = {letter: bytes([byte]) for byte, letter in enumerate(tiktoken._letters())}
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return {b"".join(to_bytes[letter] for letter in token): rank for token, rank in vocabulary}


@cache
def pair() -> tuple[Tokenizer, reference.Encoding]:
    """Ours and the reference's, with a few named special tokens."""
    first = len(trained())
    named = {first: "[BOS]", first + 7: "<|end|>"}
    special = {named.get(number, f"<|reserved_token_{number}|>"): number for number in range(first, first + 256)}
    return Tokenizer.from_buffer(converted()), reference.Encoding(
        "kimi", pat_str=PATTERN, mergeable_ranks=trained(), special_tokens=special
    )


@cache
def converted() -> bytes:
    import tempfile

    first = len(trained())
    added = {
        str(first): {"content": "[BOS]", "special": True},
        str(first + 7): {"content": "<|end|>", "special": False},
    }
    with tempfile.TemporaryDirectory() as folder:
        return tiktoken.converted(write(Path(folder), trained()), {**CONFIG, "added_tokens_decoder": added})


def check(text: str) -> None:
    ours, theirs = pair()
    expected = theirs.encode(text, allowed_special="all")
    assert ours.encode(text, add_special_tokens=False).ids == expected
    assert ours.decode(expected, skip_special_tokens=False) == theirs.decode(expected)


@settings(max_examples=80)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=30).map("".join))
def test_ids_are_those_of_tiktoken(text: str) -> None:
    check(text)


def test_ids_are_those_of_tiktoken_for_repeated_letters() -> None:
    random = Random(3)
    for _ in range(500):
        check("".join(random.choice(("a", "b", "ab", "中", "文", " ")) for _ in range(random.randrange(24))))


def test_of_overlapping_ways_to_the_same_token_the_left_one_is_taken(tmp_path: Path) -> None:
    ranks = BYTES | {b"bc": 256, b"cab": 257, b"abc": 258, b"ab": 259, b"abcab": 260}
    ours = Tokenizer.from_buffer(tiktoken.converted(write(tmp_path, ranks), CONFIG))
    theirs = reference.Encoding("x", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    random = Random(1)
    for _ in range(500):
        text = "".join(random.choice("abc") for _ in range(random.randrange(1, 16)))
        assert ours.encode(text).ids == theirs.encode(text), text


def test_special_tokens_are_named_by_the_config_or_reserved() -> None:
    tokenizer, first = pair()[0], len(trained())
    decoder = tokenizer.get_added_tokens_decoder()
    assert sorted(decoder) == list(range(first, first + 256))
    assert decoder[first].content == "[BOS]" and decoder[first].special
    assert decoder[first + 7].content == "<|end|>" and not decoder[first + 7].special
    assert decoder[first + 255].content == f"<|reserved_token_{first + 255}|>"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "its 0 ranks"),
        (b"IQ== 0\nIg== 2\n", "numbers from 0 on"),
        (b"IQ== 0\nIg== 0\n", "line 2 has the rank 0, which another token has"),
        (b"IQ== 0\nIQ== 1\n", "a token is there twice"),
        (b"IQ== -1\n", "line 1"),
        (b"IQ== 99999999\n", "out of bounds"),
        (b" 0\n", "out of bounds"),
        (b"IQ==\n", "line 1 is not a token"),
        (b"I! 0\n", "line 1 is not a token"),
        (b"IQ== 0 1\n", "line 1 is not a token"),
        (b"IQ== " + b"9" * 5000 + b"\n", "line 1"),
        (b"\xff\xfe", "line 1 is not a token"),
        (base64.b64encode(bytes(2000)) + b" 0\n", "out of bounds"),
    ],
)
def test_what_is_no_vocabulary_is_refused(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "tiktoken.model"
    path.write_bytes(data)
    with pytest.raises(TiktokenError, match=reason):
        tiktoken.converted(path, CONFIG)


def test_tokens_that_are_made_of_others_in_too_many_ways_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is written of n letters that are made of fewer grows with the cube of n."""
    tokens = [*BYTES, *(b"a" * length for length in range(2, 101))]
    path = write(tmp_path, {token: rank for rank, token in enumerate(tokens)})
    assert tiktoken.converted(path, CONFIG)
    monkeypatch.setattr(tiktoken, "MAX_TABLE_BYTES", 300_000)
    with pytest.raises(TiktokenError, match="ways to make tokens of others take more than 300000 bytes"):
        tiktoken.converted(path, CONFIG)


@settings(max_examples=60)
@given(
    st.binary(max_size=60) | st.lists(st.sampled_from(["IQ==", " ", "0", "1", "\n", "="])).map("".join).map(str.encode)
)
def test_any_file_becomes_ranks_or_a_typed_error(data: bytes) -> None:
    try:
        assert tiktoken._ranks(data, Path("tiktoken.model"))
    except TiktokenError:
        return


@pytest.mark.parametrize("key", ["x", "-1", "²", "9" * 30, "3000000"])
def test_ids_that_are_none_are_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(TiktokenError, match="added_tokens_decoder"):
        tiktoken.converted(write(tmp_path, BYTES), {**CONFIG, "added_tokens_decoder": {key: {"content": "a"}}})
    with pytest.raises(TiktokenError, match="added_tokens_decoder"):
        tiktoken.converted(write(tmp_path, BYTES), {**CONFIG, "added_tokens_decoder": {"256": {"content": key == "x"}}})


def test_classes_are_known_by_module_and_name(tmp_path: Path) -> None:
    path = write(tmp_path, BYTES)
    moonlight = "moonshotai/Moonlight-16B-A3B--tokenization_moonshot.TikTokenTokenizer"
    assert json.loads(tiktoken.converted(path, {"auto_map": {"AutoTokenizer": moonlight}}))["model"]["vocab"]["a"] == 97
    for config in ({}, {"tokenizer_class": "TikTokenTokenizer"}, {"auto_map": 3}, {"auto_map": {"AutoTokenizer": []}}):
        with pytest.raises(UnknownVocabularyError, match="tokenization_kimi"):
            tiktoken.converted(path, config)
