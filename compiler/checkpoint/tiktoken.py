"""tiktoken vocabularies as tokenizer.json, without running the code that a checkpoint brings for them.

`tiktoken.model` has a line a token: its bytes in base64, a space, its rank, which is its id and the order of merging
(github.com/openai/tiktoken, `load.py`). The pattern that splits a text before stands in the checkpoint's Python file,
so that of each known class stands here. The class adds 256 special tokens behind the ranks, with the names that
tokenizer_config.json gives in `added_tokens_decoder`, else `<|reserved_token_ID|>` (Moonlight's class adds two more,
for which its model has no rows).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dsv3c.compiler.checkpoint.errors import TiktokenError, UnknownVocabularyError
from dsv3c.compiler.checkpoint.files import MAX_TABLE_BYTES, quote, read_bytes, refuse_pointer

VOCABULARY = "tiktoken.model"
# Of moonshotai's Moonlight (tokenization_moonshot.py) and Kimi-K2 to K2.6 (tokenization_kimi.py).
_HAN_APART = "|".join(
    (
        r"[\p{Han}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_PATTERNS = {
    "tokenization_kimi.TikTokenTokenizer": _HAN_APART,
    "tokenization_moonshot.TikTokenTokenizer": _HAN_APART,
}
_RESERVED = 256
_MAX_TOKENS = 1 << 21  # of known vocabularies the largest has a tenth
_MAX_TOKEN_BYTES = 1024  # work on a token grows with the square; the longest known one has 128


def converted(path: Path, config: Mapping[str, Any]) -> bytes:
    """The tokenizer.json of a tiktoken vocabulary; `config` is the content of tokenizer_config.json.

    Raises TiktokenError and UnreadableFileError for a file that is none, UnknownVocabularyError for one that is right
    but of a class that is not known here, or without tokens for all bytes.
    """
    data = read_bytes(path, MAX_TABLE_BYTES)
    refuse_pointer(data, path)
    ranks = _ranks(data, path)
    name = _class_name(config)
    if name not in _PATTERNS:
        known = ", ".join(_PATTERNS)
        reason = f"how its class, {quote(name)}, splits a text is not known (known: {known})"
        raise UnknownVocabularyError(path=path, reason=reason)
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise UnknownVocabularyError(path=path, reason=f"it has no token for the byte 0x{missing[0]:02x}")
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(ranks, config, path),
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _PATTERNS[name]}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a piece that is a token stays one, whether or not merges lead there
            "vocab": {_text(token): rank for token, rank in ranks.items()},
            "merges": _merge_texts(ranks, path),
        },
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _class_name(config: Mapping[str, Any]) -> str:
    """Module and class of the tokenizer, as `auto_map` names them; of another repository, without its name."""
    mapped = config.get("auto_map")
    names = mapped.get("AutoTokenizer") if isinstance(mapped, dict) else None
    name = names[0] if isinstance(names, list) and names else names
    return name.rpartition("--")[2] if isinstance(name, str) else str(config.get("tokenizer_class"))


def _ranks(data: bytes, path: Path) -> dict[bytes, int]:
    """Ids by the bytes of tokens, in the order of the ids, which begin with 0 and have no holes."""
    lines = data.splitlines()
    if len(lines) > _MAX_TOKENS:
        raise TiktokenError(path=path, reason=f"it has {len(lines)} lines, at most {_MAX_TOKENS} are read")
    found: dict[int, bytes] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            text, rank = line.split(b" ")
            token, place = base64.b64decode(text, validate=True), int(rank) if rank.isdigit() else -1
        except (ValueError, binascii.Error) as error:
            raise TiktokenError(path=path, reason=f"line {number} is not a token in base64 and a rank") from error
        if not 0 <= place < _MAX_TOKENS or not 0 < len(token) <= _MAX_TOKEN_BYTES:
            raise TiktokenError(path=path, reason=f"line {number} has a token or a rank out of bounds")
        if place in found:
            raise TiktokenError(path=path, reason=f"line {number} has the rank {place}, which another token has")
        found[place] = token
    ranks = {found[place]: place for place in sorted(found)}
    if len(ranks) < len(found):
        raise TiktokenError(path=path, reason="a token is there twice")
    if not ranks or max(found) != len(ranks) - 1:
        raise TiktokenError(path=path, reason=f"its {len(ranks)} ranks are not the numbers from 0 on")
    return ranks


def _merge_texts(ranks: Mapping[bytes, int], path: Path) -> list[str]:
    """As tokenizer.json has them. Raises TiktokenError for so many as a tokenizer.json could not have."""
    found, left = [], MAX_TABLE_BYTES
    for first, second in _merges(ranks):
        left -= len(first) + len(second)
        if left < 0:
            reason = f"the ways to make tokens of others take more than {MAX_TABLE_BYTES} bytes"
            raise TiktokenError(path=path, reason=reason)
        found.append(f"{_text(first)} {_text(second)}")
    return found


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """What is joined, first to last: tiktoken joins the pair whose bytes have the lowest rank, and of several the
    leftmost. So all ways to halve a token are there.

    Two ways that overlap in a text, A B and B C with AB equal to BC, have the same rank in tiktoken, where the left
    one wins; here it has to come first. It is the one whose right half also begins the token.
    """
    for token in ranks:
        ways = [at for at in range(1, len(token)) if token[:at] in ranks and token[at:] in ranks]
        for at in sorted(ways, key=lambda at: (not token.startswith(token[at:]), -at)):
            yield token[:at], token[at:]


def _added(ranks: Mapping[bytes, int], config: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    first = len(ranks)
    entries = config.get("added_tokens_decoder", {})
    named = dict(_named(entries, path)) if isinstance(entries, dict) else {}
    ids = sorted({*range(first, first + _RESERVED), *(number for number in named if number >= first)})
    contents = [named.get(number, (f"<|reserved_token_{number}|>", True)) for number in ids]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": number, "content": content, **flags, "special": special}
        for number, (content, special) in zip(ids, contents, strict=True)
    ]


def _named(entries: Mapping[str, Any], path: Path) -> Iterator[tuple[int, tuple[str, bool]]]:
    for key, entry in entries.items():
        content = entry.get("content") if isinstance(entry, dict) else None
        known = key.isascii() and key.isdigit() and len(key) < 9 and int(key) < _MAX_TOKENS
        if not known or not isinstance(content, str) or not content:
            reason = f"added_tokens_decoder of tokenizer_config.json has {quote(key)}: {quote(entry)}"
            raise TiktokenError(path=path, reason=reason)
        yield int(key), (content, entry.get("special") is not False)


def _letters() -> list[str]:
    """The character that byte-level tokenizers write for each byte: itself if printable, else one above U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = {byte: 0x100 + at for at, byte in enumerate(sorted(set(range(256)) - printable))}
    return [chr(others.get(byte, byte)) for byte in range(256)]


_LETTERS = dict(enumerate(_letters()))


def _text(token: bytes) -> str:
    return token.decode("latin-1").translate(_LETTERS)
