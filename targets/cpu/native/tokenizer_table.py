"""tokenizer.bin: the tables that tokenizer.c uses, made from a tokenizer.json. The layout is in tokenizer.h."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsv3c.targets.cpu.native.regex import Program, Ranges, Unsupported

MAGIC = b"dsv3ctk1"
NO_ID = 0xFFFFFFFF
SECTIONS = (
    *("text_starts", "text_bytes", "byte_ids", "merges", "words", "added", "added_bytes"),
    *("classes", "ranges", "program", "stages", "prefix", "suffix"),
)
_BYTE_SECTIONS = ("text_bytes", "added_bytes")
_WIDTHS = {"merges": 4, "added": 4, "classes": 6, "ranges": 2, "program": 4, "stages": 2}  # words of an element
# What ByteLevel splits by when `use_regex` is set (tokenizers/src/pre_tokenizers/byte_level.rs).
_BYTE_LEVEL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

Words = list[int]


def tokenizer_table(path: Path) -> bytes:
    """The tables of a tokenizer.json that is byte-level BPE. Raises Unsupported for anything else."""
    content = json.loads(path.read_text(encoding="utf-8"))
    model = content["model"]
    _require(content.get("normalizer") in (None, {"type": "Sequence", "normalizers": []}), "a normaliser")
    _require((content.get("decoder") or {}).get("type") == "ByteLevel", "a decoder other than ByteLevel")
    _check_model(model)
    program = _program(content.get("pre_tokenizer"))
    added = content.get("added_tokens") or []
    for token in added:
        _require(not (token["single_word"] or token["lstrip"] or token["rstrip"]), "added tokens that take in spaces")
    texts = _texts(model["vocab"], added)
    prefix, suffix = _template(content.get("post_processor"))
    sections: dict[str, Words | bytes] = {
        "text_starts": _starts(texts),
        "text_bytes": b"".join(texts),
        "byte_ids": [model["vocab"].get(_BYTE_TEXT[byte], NO_ID) for byte in range(256)],
        "merges": _merges(model),
        "words": _words(model["vocab"], texts) if model.get("ignore_merges") else [],
        **_added(added),
        **_classes(program.classes),
        "program": [word for stage in program.stages for step in stage for word in step],
        "stages": _stages(program),
        "prefix": prefix,
        "suffix": suffix,
    }
    return _file(sections)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise Unsupported(what)


def _check_model(model: Mapping[str, Any]) -> None:
    _require(model.get("type") == "BPE", f"the model {model.get('type')}")
    for name in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        _require(not model.get(name), f"BPE with {name}")


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


def _texts(vocab: Mapping[str, int], added: Iterable[Mapping[str, Any]]) -> list[bytes]:
    """What each id decodes to; nothing for special tokens and for ids that no token has."""
    texts = {number: _decoded(token) for token, number in vocab.items()}
    texts |= {token["id"]: b"" if token["special"] else _decoded(token["content"]) for token in added}
    return [texts.get(number, b"") for number in range(max(texts) + 1)]


def _starts(texts: Iterable[bytes]) -> Words:
    return [0, *np.cumsum([len(text) for text in texts], dtype=np.int64).tolist()]


def _merges(model: Mapping[str, Any]) -> Words:
    """A hash table with linear probing, at most half full: find_merge of merge.c looks up the same slots."""
    vocab, ranks = model["vocab"], {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks[vocab[left], vocab[right]] = (rank, vocab[left + right])
    mask = _table_size(len(ranks)) - 1
    table: list[Words | None] = [None] * (mask + 1)
    for (left, right), (rank, number) in ranks.items():
        slot = (left * 0x9E3779B1 ^ right * 0x85EBCA6B) & 0xFFFFFFFF
        _place(table, slot ^ slot >> 15, [left, right, rank, number])
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


def _added(added: Iterable[Mapping[str, Any]]) -> dict[str, Words | bytes]:
    """Longest first, so that the first that fits is the longest. Tokens of the text as it is come before those of the
    normalised text."""
    tokens = sorted(((token["content"].encode(), token) for token in added), key=lambda item: -len(item[0]))
    rows: Words = []
    text = b""
    for content, token in tokens:
        if content:
            rows += [len(text), len(content), token["id"], int(token["normalized"])]
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
        else:
            parts[behind].extend(config["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
    return parts


def _file(sections: Mapping[str, Words | bytes]) -> bytes:
    at, head, body = len(MAGIC) + 8 * len(SECTIONS), [], b""
    for name in SECTIONS:
        content = sections[name]
        data = content if isinstance(content, bytes) else np.array(content, "<u4").tobytes()
        count = len(data) if name in _BYTE_SECTIONS else len(data) // 4 // _WIDTHS.get(name, 1)
        head += [at + len(body), count]
        body += data + bytes(-len(data) % 4)
    return MAGIC + np.array(head, "<u4").tobytes() + body
