"""At least how many tokens a text becomes, told without encoding it, which takes a hundred times its size of memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_BYTE_LEVEL = "ByteLevel"
_KEEPING = ("Split", "Digits", "Punctuation", _BYTE_LEVEL)  # pre-tokenisers that cut a text; Split may also drop


def bytes_of_longest_token(tokenizer: Any) -> int | None:
    """UTF-8 bytes that one token of a `tokenizers.Tokenizer` stands for at most, so that a text of n bytes has at least
    n / that many tokens; None where a token may stand for any number of them.

    That is known of byte-level BPE: nothing normalises the text, nothing is dropped, each byte is in the vocabulary,
    and no added token takes in the space around it.
    """
    added = tokenizer.get_added_tokens_decoder().values()
    if _state(tokenizer.normalizer) or any(token.lstrip or token.rstrip for token in added):
        return None
    steps = _state(tokenizer.pre_tokenizer)
    if not any(step["type"] == _BYTE_LEVEL for step in steps) or not all(map(_keeps_text, steps)):
        return None
    model, vocabulary = tokenizer.model, tokenizer.get_vocab(with_added_tokens=False)
    if type(model).__name__ != "BPE" or model.unk_token is not None or not _has_each_byte(vocabulary):
        return None
    # In the vocabulary each character stands for one byte.
    longest = max(map(len, vocabulary))
    return max(longest, max((len(token.content.encode()) for token in added), default=0))


def has_byte_names(tokenizer: Any) -> bool:
    """Whether names of tokens are decoded byte by byte."""
    return tokenizer.decoder is not None and f'"{_BYTE_LEVEL}"'.encode() in tokenizer.decoder.__getstate__()


def _state(part: Any) -> list[Mapping[str, Any]]:
    """The steps of a normaliser or pre-tokeniser, sequences taken apart; none for no such part."""
    return [] if part is None else list(_flat(json.loads(part.__getstate__())))


def _flat(step: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if step["type"] != "Sequence":
        yield step
        return
    for inner in step.get("pretokenizers", step.get("normalizers", ())):
        yield from _flat(inner)


def _keeps_text(step: Mapping[str, Any]) -> bool:
    return step["type"] in _KEEPING and step.get("behavior") != "Removed"


def _has_each_byte(vocabulary: Mapping[str, int]) -> bool:
    """Characters of byte level BPE: those of Latin-1 that can be seen, and from U+0100 on for the others."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return all(chr(code) in vocabulary for code in [*seen, *range(0x100, 0x100 + 256 - len(seen))])
