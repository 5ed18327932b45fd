"""Tokens one by one, as log-probabilities are told: their texts and their bytes."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from dsv3c.runtime.engine.generation import TokenLogprobs
from dsv3c.runtime.server.deltas import Scored

if TYPE_CHECKING:
    from dsv3c.runtime.text.tokenizer import Tokenizer


def scored(tokenizer: Tokenizer, found: TokenLogprobs) -> Scored:
    top = tuple(_scored(tokenizer, token, logprob) for token, logprob in found.top)
    return _scored(tokenizer, found.token_id, found.logprob, top)


def unscored(tokenizer: Tokenizer, token: int) -> Scored:
    """One that nothing foretells."""
    return _scored(tokenizer, token, None)


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """Those that a token adds to a text; the name of a special token; none for an id without a token."""
    name = tokenizer.token(token_id)
    if name is None:
        return b""
    if tokenizer.byte_level and tokenizer.decode([token_id]):
        table = _bytes_of_characters()
        if all(character in table for character in name):
            return bytes(table[character] for character in name)
    return (tokenizer.decode([token_id]) or name).encode("utf-8", "replace")


def _scored(tokenizer: Tokenizer, token: int, logprob: float | None, top: tuple[Scored, ...] = ()) -> Scored:
    data = token_bytes(tokenizer, token)
    return Scored(data.decode("utf-8", "replace"), data, token, logprob, top)


@lru_cache(maxsize=1)
def _bytes_of_characters() -> dict[str, int]:
    """Byte-level BPE writes a byte as one character: those that can be seen as themselves, others from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(seen)]
    return {chr(byte): byte for byte in seen} | {chr(0x100 + at): byte for at, byte in enumerate(hidden)}
