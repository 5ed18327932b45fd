"""The text files of a checkpoint made of the keys of a GGUF file: tokenizer, chat template, defaults of sampling.

ggml-org/ggml, docs/gguf.md (tokenizer.ggml.*); llama.cpp, conversion/base.py (`get_vocab_base`, `SpecialVocab`). In a
GGUF file a token is known by its text alone. So a token that is added to the vocabulary has no flags but whether it is
special, and what the original did at its edges is lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dsv3c.compiler.checkpoint.files import quote
from dsv3c.compiler.checkpoint.gguf.config import special_ids
from dsv3c.compiler.checkpoint.gguf.container import Value
from dsv3c.compiler.checkpoint.gguf.keys import Keys
from dsv3c.compiler.checkpoint.gguf.pieces import byte_level, sentence_pieces
from dsv3c.compiler.checkpoint.gguf.splitting import SPLITTINGS

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5  # enum llama_token_type
_TOKENIZER, _TEMPLATE = "tokenizer.ggml.", "tokenizer.chat_template"
_SAMPLING = {
    "temp": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def text_of(name: str, values: Mapping[str, Value], path: Path) -> bytes | None:
    """The file of that name, one of NAMES; None where the keys have nothing for it, or `lacking` has a reason.

    Raises ConfigValueError, TokenizerVocabularyError.
    """
    content = _MAKERS[name](Keys(values, path))
    return json.dumps(content, ensure_ascii=False).encode() if content else None


def lacking(keys: Keys) -> str:
    """Why no tokenizer.json can be made, empty when it can; `keys` are those of the tokenizer."""
    model, pre = keys.text("model"), keys.text("pre") or "default"
    if model is None or keys.values.get(f"{_TOKENIZER}tokens") is None:
        return "the file has no tokenizer"
    if model not in ("gpt2", "llama"):
        return f"tokenizer.ggml.model is {quote(model)}, known are gpt2 and llama"
    if model == "gpt2" and pre not in SPLITTINGS:
        return f"tokenizer.ggml.pre is {quote(pre)}, known are {', '.join(SPLITTINGS)}"
    return ""


def _tokenizer(file: Keys) -> dict[str, Any]:
    keys = file.under(_TOKENIZER)
    if lacking(keys):
        return {}
    tokens = keys.texts("tokens") or []
    kinds = _kinds(keys, len(tokens))
    vocabulary = {token: number for number, token in enumerate(tokens) if kinds[number] != _UNUSED}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": number, "content": tokens[number], **flags, "special": kind != _USER_DEFINED}
        for number, kind in enumerate(kinds)
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED) and tokens[number]
    ]
    if keys.text("model") == "llama":
        merged = (token for token, number in vocabulary.items() if kinds[number] == _NORMAL)
        unknown = next((token for token, number in vocabulary.items() if kinds[number] == _UNKNOWN), None)
        parts = sentence_pieces(keys, vocabulary, merged, unknown)
    else:
        parts = byte_level(keys, vocabulary)
    around = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "post_processor": None}
    return around | parts


def _kinds(keys: Keys, count: int) -> list[int]:
    """Of each token, all normal where the file does not say. Raises ConfigValueError."""
    kinds = keys.numbers("token_type")
    if kinds is None:
        return [_NORMAL] * count
    if len(kinds) != count:
        raise keys.wrong("token_type", f"one for each of {count} tokens")
    found: list[int] = kinds.tolist()
    return found


def _tokenizer_config(file: Keys) -> dict[str, Any]:
    keys, ids = file.under(_TOKENIZER), special_ids(file)
    if lacking(keys):
        return {}
    tokens = keys.texts("tokens") or []
    config: dict[str, Any] = {}
    roles = {"bos": ids["bos_token_id"], "eos": keys.integer("eos_token_id"), "pad": ids["pad_token_id"]}
    for role, number in roles.items():
        if number is not None and 0 <= number < len(tokens):
            config[f"{role}_token"] = tokens[number]
    begins, ends = keys.boolean("add_bos_token"), keys.boolean("add_eos_token")
    pieces = keys.text("model") == "llama"  # which begin with BOS, where the file does not say
    config["add_bos_token"] = (pieces or SPLITTINGS[keys.text("pre") or ""].begins) if begins is None else begins
    if ends is not None:
        config["add_eos_token"] = ends
    template = _chat_template(file)
    return config if template is None else config | {"chat_template": template}


def _chat_template(file: Keys) -> str | list[dict[str, str]] | None:
    """One text, or where there are further ones all of them by name."""
    main = file.text(_TEMPLATE)
    named = {name: file.text(f"{_TEMPLATE}.{name}") for name in file.texts("tokenizer.chat_templates") or []}
    further = [{"name": name, "template": text} for name, text in named.items() if text is not None]
    if main is None or not further:
        return main
    return [{"name": "default", "template": main}, *further]


def _defaults(file: Keys) -> dict[str, Any]:
    """generation_config.json, empty where the file has no defaults of sampling."""
    keys = file.under("general.sampling.")
    found: dict[str, float | None] = {name: keys.number(key) for key, name in _SAMPLING.items()}
    found["top_k"] = keys.integer("top_k")
    given = {name: value for name, value in found.items() if value is not None}
    return {"do_sample": True, **given} if given else {}


_MAKERS: Mapping[str, Callable[[Keys], dict[str, Any]]] = {
    "tokenizer.json": _tokenizer,
    "tokenizer_config.json": _tokenizer_config,
    "generation_config.json": _defaults,
}
NAMES = tuple(_MAKERS)
