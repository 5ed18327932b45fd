"""Streamed text: joined it is the whole decode, and no piece holds half a character."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.runtime.text.stream import StopFilter, StreamDecoder
from dsv3c.runtime.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(bundled_model: Path) -> Tokenizer:
    return Tokenizer(bundled_model / "tokenizer.json", {})


def pieces_of(decoder: StreamDecoder, tokens: list[int]) -> list[str]:
    return [*(decoder.push(token) for token in tokens), decoder.flush()]


@given(st.lists(st.integers(0, 2047), max_size=80))
@settings(max_examples=200)
def test_any_tokens(tokenizer: Tokenizer, tokens: list[int]) -> None:
    assert "".join(pieces_of(StreamDecoder(tokenizer.decode), tokens)) == tokenizer.decode(tokens)


@given(st.binary(max_size=120))
@settings(max_examples=200)
def test_any_bytes(tokenizer: Tokenizer, data: bytes) -> None:
    tokens = [token_of_byte(tokenizer, byte) for byte in data]
    assert "".join(pieces_of(StreamDecoder(tokenizer.decode), tokens)) == data.decode("utf-8", "replace")


@given(st.text(max_size=60))
@settings(max_examples=200)
def test_text_comes_character_by_character(tokenizer: Tokenizer, text: str) -> None:
    decoder = StreamDecoder(tokenizer.decode)
    reference = codecs.getincrementaldecoder("utf-8")()
    for byte in text.encode():
        certain = reference.decode(bytes([byte]))
        piece = decoder.push(token_of_byte(tokenizer, byte))
        # U+FFFD itself looks like a broken character and waits for the next.
        assert piece == certain or "\ufffd" in text
    decoder.flush()


def test_long_run_of_broken_bytes_costs_the_same_for_each_token(tokenizer: Tokenizer) -> None:
    sizes = []

    def decode(tokens: object) -> str:
        sizes.append(len(list(tokens)))  # type: ignore[call-overload]
        return tokenizer.decode(tokens)  # type: ignore[arg-type]

    tokens = [token_of_byte(tokenizer, 0x80)] * 3000
    assert "".join(pieces_of(StreamDecoder(decode), tokens)) == "\ufffd" * 3000
    assert max(sizes) < 100


def test_special_tokens_give_no_text_and_are_not_piled_up(tokenizer: Tokenizer) -> None:
    decoder = StreamDecoder(tokenizer.decode)
    assert set(pieces_of(decoder, [0] * 500)) == {""}
    assert len(decoder._held) < 100


def token_of_byte(tokenizer: Tokenizer, byte: int) -> int:
    """The token of one byte, by the alphabet of byte-level BPE."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in printable]
    char = chr(byte) if byte in printable else chr(256 + others.index(byte))
    token = tokenizer.token_id(char)
    assert token is not None
    return token


@pytest.mark.parametrize(
    ("stops", "pieces", "text", "stopped"),
    [
        (["END"], ["a", "bEN", "Dc"], "ab", True),
        (["END"], ["a", "bEN", "c"], "abENc", False),
        (["END"], ["E", "E", "ND"], "E", True),
        (["b", "abc"], ["a", "bc"], "", True),
        (["xx"], ["x", "yx"], "xyx", False),
        ([], ["a", "b"], "ab", False),
        (["aab"], ["aaa", "b"], "a", True),
    ],
)
def test_stop_strings(stops: list[str], pieces: list[str], text: str, stopped: bool) -> None:
    stop = StopFilter(stops)
    found = "".join([*(stop.push(piece) for piece in pieces), stop.flush()])
    assert (found, stop.stopped) == (text, stopped)


@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3), st.data())
def test_stop_strings_are_found_wherever_the_pieces_break(text: str, stops: list[str], data: st.DataObject) -> None:
    stop = StopFilter(stops)
    given_out, rest = "", text
    while rest and not stop.stopped:
        size = data.draw(st.integers(1, len(rest)))
        given_out += stop.push(rest[:size])
        rest = rest[size:]
    given_out += stop.flush()
    ends = [text.find(s) + len(s) for s in stops if s in text]
    if not ends:
        assert given_out == text
    else:
        # The text ends before a stop string, and none is left in it.
        assert text.startswith(given_out) and stop.stopped
        assert any(text[len(given_out) :].startswith(s) for s in stops)
        assert not any(s in given_out for s in stops)
