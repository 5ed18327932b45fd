"""Tokens told one by one: bytes that are a part of a character, special tokens, characters that stand for bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv3c.runtime.engine.generation import TokenLogprobs
from dsv3c.runtime.server.token_texts import scored, token_bytes
from dsv3c.runtime.text.tokenizer import Tokenizer
from tests.checkpoints import write_tokenizer
from tests.runtime.server.conftest import SPECIAL, write_texts


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_texts(tmp_path)
    return Tokenizer(tmp_path / "tokenizer.json", {})


def test_bytes_of_a_text_s_tokens_joined_are_the_text_s(tokenizer: Tokenizer) -> None:
    text = "héllo  wörld\n\t€ 漢 \x00"
    assert b"".join(token_bytes(tokenizer, token) for token in tokenizer.encode_plain(text)) == text.encode()


def test_a_part_of_a_character_has_its_byte_and_a_replacement(tokenizer: Tokenizer) -> None:
    first, _ = tokenizer.encode_plain("é")
    found = scored(tokenizer, TokenLogprobs(first, -1.0, ((first, -1.0), (1, -2.0))))
    assert (found.text, found.data, found.logprob) == ("\N{REPLACEMENT CHARACTER}", b"\xc3", -1.0)
    assert [(each.text, each.logprob) for each in found.top] == [
        ("\N{REPLACEMENT CHARACTER}", -1.0),
        (SPECIAL[1], -2.0),
    ]


def test_an_id_without_a_token_has_no_bytes(tokenizer: Tokenizer) -> None:
    assert token_bytes(tokenizer, 319) == b""


def test_names_of_other_tokenizers_are_texts(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 96)
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", {})
    assert not tokenizer.byte_level and token_bytes(tokenizer, tokenizer.encode_plain("a")[0]) == b"a"
