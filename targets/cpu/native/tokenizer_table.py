"""tokenizer.bin: the tables that tokenizer.c uses, made from a tokenizer.json. The layout is in tokenizer.h."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import tokenizers

from dsv3c.compiler.errors import TokenizerFormatError
from dsv3c.targets.cpu.native.regex import Program, Ranges, Unsupported

MAGIC = b"dsv3ctk2"
NO_ID = 0xFFFFFFFF
SECTIONS = (
    *("text_starts", "text_bytes", "byte_ids", "merges", "words", "added", "added_bytes"),
    *("classes", "ranges", "program", "stages", "prefix", "suffix", "ends"),
)
_BYTE_SECTIONS = ("text_bytes", "added_bytes")
_WIDTHS = {"merges": 4, "added": 4, "classes": 6, "ranges": 2, "program": 4, "stages": 2}  # words of an element
# What ByteLevel splits by when `use_regex` is set (tokenizers/src/pre_tokenizers/byte_level.rs).
_BYTE_LEVEL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_MOST_IDS = 1 << 22

Words = list[int]
Added = tokenizers.AddedToken


def tokenizer_table(path: Path, config: Mapping[str, Any] = MappingProxyType({})) -> bytes:
    """The tables of a tokenizer.json that is byte-level BPE; `config` is the content of tokenizer_config.json.

    Raises TokenizerFormatError for what the package `tokenizers` refuses, Unsupported for any other kind.
    """
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    tokenizer = _opened(data, path)
    _require(_state(tokenizer.normalizer) in (None, {"type": "Sequence", "normalizers": []}), "a normaliser")
    _require((_state(tokenizer.decoder) or {}).get("type") == "ByteLevel", "a decoder other than ByteLevel")
    _check_model(tokenizer.model)
    program = _program(_state(tokenizer.pre_tokenizer))
    added = tokenizer.get_added_tokens_decoder()
    for token in added.values():
        _require(not (token.single_word or token.lstrip or token.rstrip), "added tokens that take in spaces")
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    _require(max((*vocab.values(), *added), default=0) < _MOST_IDS, f"token ids from {_MOST_IDS} on")
    texts = _texts(vocab, added)
    ends = [_special_id(tokenizer, config, name) for name in ("bos_token", "eos_token")]
    prefix, suffix = _around(_template(_state(tokenizer.post_processor)), ends, config)
    _require(all(number < len(texts) for number in (*prefix, *suffix)), "a post-processor with ids that no token has")
    sections: dict[str, Words | bytes] = {
        "text_starts": _starts(texts),
        "text_bytes": b"".join(texts),
        "byte_ids": [vocab.get(_BYTE_TEXT[byte], NO_ID) for byte in range(256)],
        "merges": _merges(json.loads(data)["model"].get("merges", []), vocab),
        "words": _words(vocab, texts) if tokenizer.model.ignore_merges else [],
        **_added(added),
        **_classes(program.classes),
        "program": [word for stage in program.stages for step in stage for word in step],
        "stages": _stages(program),
        "prefix": prefix,
        "suffix": suffix,
        "ends": [NO_ID if number is None else number for number in ends],
    }
    return _file(sections)


def _opened(data: bytes, path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_buffer(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the Rust side is no Exception
        raise TokenizerFormatError(path=path, reason=str(error)[:200]) from error


def _state(part: Any) -> Any:
    """A part of a tokenizer as the JSON it is stored as, with every key that has a default."""
    return None if part is None else json.loads(part.__getstate__())


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise Unsupported(what)


def _check_model(model: Any) -> None:
    _require(isinstance(model, tokenizers.models.BPE), f"the model {type(model).__name__}")
    for name in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        _require(not getattr(model, name), f"BPE with {name}")


def _program(config: Mapping[str, Any] | None) -> Program:
    """The stages of a pre-tokeniser that ends in ByteLevel."""
    config = config or {}
    steps = config.get("pretokenizers", []) if config.get("type") == "Sequence" else [config]
    program, byte_level = Program(), False
    for step in steps:
        _require(not byte_level, "a pre-tokeniser behind ByteLevel")
        byte_level = step.get("type") == "ByteLevel"
        if pattern := _pattern(step):
            program.add(pattern)
    _require(byte_level, "a pre-tokeniser without ByteLevel")
    return program


def _pattern(step: Mapping[str, Any]) -> str | None:
    kind = step.get("type")
    if kind == "ByteLevel":
        _require(not step.get("add_prefix_space", True), "ByteLevel with a space before the text")
        return _BYTE_LEVEL if step.get("use_regex", True) else None
    if kind == "Digits":
        return r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
    _require(kind == "Split" and "Regex" in step["pattern"], f"the pre-tokeniser {kind}")
    _require(step["behavior"] == "Isolated" and not step["invert"], f"splits that are {step['behavior']}")
    pattern: str = step["pattern"]["Regex"]
    return pattern


def _byte_text() -> dict[int, str]:
    """The character that ByteLevel writes for each byte: itself where it is printable, one above U+0100 if not."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


_BYTE_TEXT = _byte_text()
_TEXT_BYTE = {text: byte for byte, text in _BYTE_TEXT.items()}


def _decoded(token: str) -> bytes:
    """As the ByteLevel decoder: a token with a character that stands for no byte is text as it is."""
    if all(character in _TEXT_BYTE for character in token):
        return bytes(_TEXT_BYTE[character] for character in token)
    return token.encode()


def _texts(vocab: Mapping[str, int], added: Mapping[int, Added]) -> list[bytes]:
    """What each id decodes to; nothing for special tokens and for ids that no token has."""
    texts = {number: _decoded(token) for token, number in vocab.items()}
    texts |= {number: b"" if token.special else _decoded(token.content) for number, token in added.items()}
    return [texts.get(number, b"") for number in range(max(texts, default=-1) + 1)]


def _starts(texts: Iterable[bytes]) -> Words:
    return [0, *np.cumsum([len(text) for text in texts], dtype=np.int64).tolist()]


def _merges(merges: Sequence[str | list[str]], vocab: Mapping[str, int]) -> Words:
    """A hash table with linear probing, at most half full: find_merge of merge.c looks up the same slots."""
    ranks = {}
    for rank, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        _require(len(pair) == 2 and {*pair, "".join(pair)} <= vocab.keys(), f"the merge {merge!r}")
        left, right = pair
        ranks[vocab[left], vocab[right]] = (rank, vocab[left + right])
    mask = _table_size(len(ranks)) - 1
    table: list[Words | None] = [None] * (mask + 1)
    for (first, second), (rank, number) in ranks.items():
        slot = (first * 0x9E3779B1 ^ second * 0x85EBCA6B) & 0xFFFFFFFF
        _place(table, slot ^ slot >> 15, [first, second, rank, number])
    return [word for entry in table for word in entry or (0, 0, NO_ID, 0)]


def _words(vocab: Mapping[str, int], texts: Sequence[bytes]) -> Words:
    """Ids by the text of a whole word: find_word of merge.c looks up the same slots."""
    table: list[Words | None] = [None] * _table_size(len(vocab))
    for number in vocab.values():
        slot = 0x811C9DC5
        for byte in texts[number]:
            slot = (slot ^ byte) * 0x01000193 & 0xFFFFFFFF
        _place(table, slot, [number])
    return [word for entry in table for word in entry or (NO_ID,)]


def _table_size(entries: int) -> int:
    return 1 << max(1, (2 * entries).bit_length())


def _place(table: list[Words | None], slot: int, entry: Words) -> None:
    while table[slot & len(table) - 1] is not None:
        slot += 1
    table[slot & len(table) - 1] = entry


def _added(added: Mapping[int, Added]) -> dict[str, Words | bytes]:
    """Longest first, so that the first that fits is the longest. Tokens of the text as it is come before those of the
    normalised text."""
    tokens = sorted(added.items(), key=lambda item: -len(item[1].content.encode()))
    rows: Words = []
    text = b""
    for number, token in tokens:
        content = token.content.encode()
        if content:
            rows += [len(text), len(content), number, int(token.normalized)]
            text += content
    return {"added": rows, "added_bytes": text}


def _classes(classes: Iterable[Ranges]) -> dict[str, Words | bytes]:
    rows: Words = []
    flat: Words = []
    for ranges in classes:
        ascii_bits = sum(1 << c for low, high in ranges for c in range(low, min(high, 127) + 1))
        words = [ascii_bits >> shift & 0xFFFFFFFF for shift in range(0, 128, 32)]
        rows += [len(flat) // 2, len(ranges), *words]
        flat += [bound for pair in ranges for bound in pair]
    return {"classes": rows, "ranges": flat}


def _stages(program: Program) -> Words:
    stages, first = [], 0
    for stage in program.stages:
        stages += [first, len(stage)]
        first += len(stage)
    return stages


def _template(config: Mapping[str, Any] | None) -> tuple[Words, Words]:
    """Ids that the post-processor puts before and behind a text."""
    if config is None or config["type"] == "ByteLevel":
        return [], []
    if config["type"] == "Sequence":
        found = [_template(step) for step in config["processors"]]
        return [i for before, _ in reversed(found) for i in before], [i for _, after in found for i in after]
    _require(config["type"] == "TemplateProcessing", f"the post-processor {config['type']}")
    parts: tuple[Words, Words] = ([], [])
    behind = 0
    for piece in config["single"]:
        if "Sequence" in piece:
            behind = 1
            continue
        name = piece["SpecialToken"]["id"]
        _require(name in config["special_tokens"], f"a post-processor with the unknown token {name!r}")
        parts[behind].extend(config["special_tokens"][name]["ids"])
    return parts


def _special_id(tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any], name: str) -> int | None:
    value = config.get(name)
    token = value.get("content") if isinstance(value, dict) else value
    if not isinstance(token, str):
        return None
    try:
        return tokenizer.token_to_id(token)
    except UnicodeEncodeError:  # a lone surrogate is no text of a token
        return None


def _around(
    template: tuple[Words, Words], ends: Sequence[int | None], config: Mapping[str, Any]
) -> tuple[Words, Words]:
    """What stands around a text, as Tokenizer.encode of the runtime has it: `add_bos_token` and `add_eos_token` go
    before the post-processor. Where the text has the token there already, tokenizer.c takes the second one away."""
    prefix, suffix = template
    (bos, eos), begin, end = ends, config.get("add_bos_token"), config.get("add_eos_token")
    if bos is not None and begin is True and prefix[:1] != [bos]:
        prefix = [bos, *prefix]
    if bos is not None and begin is False and prefix[:1] == [bos]:
        prefix = prefix[1:]
    if eos is not None and end is True and suffix[-1:] != [eos]:
        suffix = [*suffix, eos]
    if eos is not None and end is False and suffix[-1:] == [eos]:
        suffix = suffix[:-1]
    return prefix, suffix


def _file(sections: Mapping[str, Words | bytes]) -> bytes:
    at, head, body = len(MAGIC) + 8 * len(SECTIONS), [], b""
    for name in SECTIONS:
        content = sections[name]
        data = content if isinstance(content, bytes) else np.array(content, "<u4").tobytes()
        count = len(data) if name in _BYTE_SECTIONS else len(data) // 4 // _WIDTHS.get(name, 1)
        head += [at + len(body), count]
        body += data + bytes(-len(data) % 4)
    return MAGIC + np.array(head, "<u4").tobytes() + body
