"""The two kinds of vocabulary in GGUF files, as the parts of tokenizer.json that differ between them.

gpt2: byte-level BPE, whose merges the file has. llama: SentencePiece's BPE with bytes for what it does not know, of
which the file has scores instead; two pieces are merged where what they make is a piece too, the best score first, as
transformers reads such a vocabulary (convert_slow_tokenizer.py, `generate_merges`). Spaces stand as ▁, one more at the
beginning of each text and behind each special token, as in llama.cpp (src/llama-vocab.cpp, `add_space_prefix`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from dsv3c.compiler.checkpoint.errors import TokenizerVocabularyError
from dsv3c.compiler.checkpoint.files import quote
from dsv3c.compiler.checkpoint.gguf.keys import Keys
from dsv3c.compiler.checkpoint.gguf.splitting import SPLITTINGS

Vocabulary = Mapping[str, int]
_SPACE = "\u2581"
_MAX_PIECE = 64  # characters, where SentencePiece's own limit is 16: longer ones are not merged to
_MAX_PAIRS = 1_000_000  # as tuples they take some hundred megabytes
_BPE = {"type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}


def byte_level(keys: Keys, vocabulary: Vocabulary) -> dict[str, Any]:
    """`keys` are those of the tokenizer. Raises ConfigValueError, TokenizerVocabularyError."""
    merges, splitting = keys.texts("merges"), SPLITTINGS[keys.text("pre") or ""]
    if merges is None:
        raise keys.wrong("merges", "a list of texts")
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not (left in vocabulary and right in vocabulary and left + right in vocabulary):
            raise TokenizerVocabularyError(path=keys.path, reason=f"the merge {quote(merge)} is not one of its tokens")
    return {
        "normalizer": None,
        "pre_tokenizer": splitting.pre_tokenizer(),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            **_BPE, "unk_token": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": splitting.whole,
            "vocab": vocabulary, "merges": merges,
        },
    }  # fmt: skip


def sentence_pieces(keys: Keys, vocabulary: Vocabulary, merged: Iterable[str], unknown: str | None) -> dict[str, Any]:
    """As `byte_level`. merged: the pieces that texts are merged to. unknown: the token for what has no bytes here."""
    scores = keys.numbers("scores")
    count = max(vocabulary.values(), default=-1) + 1
    if scores is None or len(scores) < count or scores.dtype.kind != "f":
        raise keys.wrong("scores", f"a number for each of {count} tokens")
    if keys.boolean("remove_extra_whitespaces"):
        raise keys.unsupported("remove_extra_whitespaces", "texts are taken as they are")
    ids, pairs = vocabulary.__getitem__, list(islice(_pairs(merged, vocabulary), _MAX_PAIRS + 1))
    if len(pairs) > _MAX_PAIRS:
        raise TokenizerVocabularyError(path=keys.path, reason=f"pieces make others in more than {_MAX_PAIRS} ways")
    pairs.sort(key=lambda pair: (-scores[ids("".join(pair))], *map(ids, pair)))
    begins = keys.boolean("add_space_prefix") is not False
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    first: list[dict[str, Any]] = [{"type": "Prepend", "prepend": _SPACE}] if begins else []
    strip: list[dict[str, Any]] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if begins else []
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*first, spaces]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            **_BPE, "unk_token": unknown, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocabulary, "merges": [" ".join(pair) for pair in pairs],
        },
    }  # fmt: skip


def _pairs(pieces: Iterable[str], vocabulary: Vocabulary) -> Iterator[tuple[str, str]]:
    """What each piece is merged from."""
    for piece in pieces:
        if len(piece) > _MAX_PIECE or " " in piece:
            continue
        for at in range(1, len(piece)):
            if piece[:at] in vocabulary and piece[at:] in vocabulary:
                yield piece[:at], piece[at:]
