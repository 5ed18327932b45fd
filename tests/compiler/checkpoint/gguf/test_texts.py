from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from dsv3c.compiler.checkpoint.errors import ConfigValueError, TokenizerVocabularyError, UnsupportedConfigError
from dsv3c.compiler.checkpoint.gguf import pieces
from dsv3c.compiler.checkpoint.gguf.splitting import SPLITTINGS
from dsv3c.compiler.checkpoint.gguf.texts import NAMES, text_of
from dsv3c.runtime.text.tokenizer import Tokenizer
from tests.conftest import BUNDLED_MODEL

PATH = Path("model.gguf")
TEXT = "I'LL eat 12345 plums,\n\n  said  Éva;\tnaïve 漢字かな 한국어 don't x+=1 \r\n "

# How the models' own tokenizers split TEXT.
SPLIT = {
    "deepseek-v3": ["I", "'LL", " eat", " ", "123", "45", " plums", ",\n\n", " ", " said", " ", " Éva", ";", "\tnaïve",
                    " ", "漢字かな", " 한국어", " don", "'t", " x", "+=", "1", " \r\n", " "],
    # Its punctuation, `:-~`, has the ASCII letters too.
    "deepseek-llm": ["I", "'", "LL", " eat", " ", "1", "2", "3", "4", "5", " plums", ",", "\n", "\n", " ", " said", " ",
                     " É", "va", ";", "\tna", "ï", "ve", " ", "漢字かな", " ", "한국어", " don", "'", "t", " x", "+=",
                     "1", " ", "\r", "\n", " "],
    "kimi-k2": ["I'LL", " eat", " ", "123", "45", " plums", ",\n\n", " ", " said", " ", " Éva", ";", "\tnaïve", " ",
                "漢字", "かな", " 한국어", " don't", " x", "+=", "1", " \r\n", " "],
    "glm4": ["I", "'LL", " eat", " ", "123", "45", " plums", ",\n\n", " ", " said", " ", " Éva", ";", "\tnaïve",
             " 漢字かな", " 한국어", " don", "'t", " x", "+=", "1", " \r\n", " "],
    "gpt-4o": ["I'LL", " eat", " ", "123", "45", " plums", ",\n\n", " ", " said", " ", " Éva", ";", "\tnaïve",
               " 漢字かな", " 한국어", " don't", " x", "+=", "1", " \r\n", " "],
    "gpt-2": ["I", "'", "LL", " eat", " 12345", " plums", ",", "\n\n ", " said", " ", " Éva", ";", "\t", "naïve",
              " 漢字かな", " 한국어", " don", "'t", " x", "+=", "1", " \r\n "],
}  # fmt: skip


def values_of(**keys: Any) -> dict[str, Any]:
    """Keys of the container as it reads them."""
    tokens = keys.pop("tokens", ["<s>", "</s>", "a", "b", "ab", "[PAD5]", "<u>"])
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "deepseek-v3",
        "tokenizer.ggml.merges": (b"a b",),
        "tokenizer.ggml.token_type": np.array([3, 3, 1, 1, 1, 5, 4], np.int32),
        "tokenizer.ggml.tokens": tuple(token.encode() for token in tokens) if isinstance(tokens, list) else tokens,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    found |= {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    return {key: value for key, value in found.items() if value is not None}


def texts_of(values: dict[str, Any], path: Path) -> dict[str, bytes]:
    texts = {name: text_of(name, values, path) for name in NAMES}
    return {name: text for name, text in texts.items() if text is not None}


def tokenizer_of(values: dict[str, Any]) -> Tokenizer:
    texts = texts_of(values, PATH)
    return Tokenizer(PATH, json.loads(texts["tokenizer_config.json"]), None, texts["tokenizer.json"])


@pytest.mark.parametrize("name", SPLIT)
def test_texts_are_split_as_the_models_split_them(name: str) -> None:
    splitting = SPLITTINGS[name].pre_tokenizer()
    content = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": splitting, "added_tokens": []}
    pieces = tokenizers.Tokenizer.from_str(json.dumps(content)).pre_tokenizer.pre_tokenize_str(TEXT)
    assert [TEXT[begin:end] for _, (begin, end) in pieces] == SPLIT[name]


@pytest.mark.parametrize("name", SPLITTINGS)
def test_every_splitting_is_one_that_tokenizers_reads(name: str) -> None:
    tokenizer = tokenizer_of(values_of(pre=name))
    assert tokenizer.encode_plain("abb<u>") == [4, 3, 6]
    assert tokenizer.encode("ab") == ([0, 4] if name == "llama-bpe" else [4])


def test_same_ids_as_the_tokenizer_it_was_made_from() -> None:
    """Of the bundled model, whose special tokens, merges and bytes go by the keys that a converter writes."""
    original = json.loads((BUNDLED_MODEL / "tokenizer.json").read_text("utf-8"))
    config = json.loads((BUNDLED_MODEL / "tokenizer_config.json").read_text("utf-8"))
    vocabulary = {number: token for token, number in original["model"]["vocab"].items()}
    special = {token["id"]: token["content"] for token in original["added_tokens"]}
    vocabulary |= special
    count = max(vocabulary) + 1
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in original["model"]["merges"])
    made = tokenizer_of(
        values_of(
            tokens=[vocabulary.get(number, f"[PAD{number}]") for number in range(count)],
            token_type=np.array([3 if n in special else 1 if n in vocabulary else 5 for n in range(count)], np.int32),
            merges=tuple(merge.encode() for merge in merges),
            pre="gpt-2",
            add_bos_token=True,
        )
    )
    theirs = Tokenizer(BUNDLED_MODEL / "tokenizer.json", config)
    rng = np.random.default_rng(0)
    texts = ["", TEXT, "Once upon a time <｜end▁of▁sentence｜> there", "\0 \x7f\u2028\ufeff"]
    for _ in range(100):
        points = (int(rng.integers(1, most)) for most in rng.choice([0x80, 0x800, 0xD800, 0x20000], 40))
        texts.append("".join(chr(point) for point in points if not 0xD800 <= point < 0xE000))
    for text in texts:
        assert made.encode(text) == theirs.encode(text)
        assert made.decode(made.encode(text)) == theirs.decode(theirs.encode(text))


MERGED = ["▁t", "he", "in", "▁the", "▁a", "nd", "▁and", "▁▁", "ing", "th"]
CHARACTERS = ["▁", "t", "h", "e", "i", "n", "a", "d", "g"]
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *MERGED, *CHARACTERS]
# What the package sentencepiece makes of these pieces, with scores in their order.
IDS = {
    "the thing and": [262, 259, 271, 267, 265],
    "  in  the hand": [266, 269, 261, 269, 262, 269, 271, 275, 264],
    "nightingale é<0x41>": [269, 274, 273, 277, 271, 270, 267, 275, 111, 272, 269, 198, 172, 63, 51, 123, 55, 52, 65],
    "": [],
    "tthhee\n": [259, 268, 260, 272, 13],
}


def pieces_of(**keys: Any) -> dict[str, Any]:
    scores = np.array([0] * 259 + [-float(rank) for rank in range(len(MERGED) + len(CHARACTERS))], np.float32)
    kinds = np.array([2, 3, 3, *[6] * 256, *[1] * (len(PIECES) - 259)], np.int32)
    own = {"model": "llama", "pre": "default", "tokens": PIECES, "token_type": kinds, "scores": scores, "merges": None}
    return values_of(**{**own, "bos_token_id": 1, "eos_token_id": 2, **keys})


def test_sentence_pieces_are_those_of_sentencepiece() -> None:
    tokenizer = tokenizer_of(pieces_of())
    for text, ids in IDS.items():
        assert tokenizer.encode_plain(text) == ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("the") == [1, 262], "texts begin with BOS where the file does not say"


def test_a_space_stands_before_each_text_unless_the_file_says_no() -> None:
    tokenizer = tokenizer_of(pieces_of(add_space_prefix=False, add_bos_token=False))
    assert tokenizer.encode("the") == [270, 260]
    assert tokenizer.encode("the</s>the") == [270, 260, 2, 270, 260]
    assert tokenizer_of(pieces_of()).encode("the</s>the") == [1, 262, 2, 262], "and behind each special token"


def test_pieces_that_make_each_other_in_too_many_ways_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_MAX_PAIRS", 3)
    with pytest.raises(TokenizerVocabularyError, match="in more than 3 ways"):
        tokenizer_of(pieces_of())


def test_special_tokens_and_flags() -> None:
    tokenizer = tokenizer_of(values_of(add_bos_token=True, add_eos_token=True))
    assert tokenizer.encode("ab") == [0, 4, 1]
    assert tokenizer.decode([0, 4, 6, 1]) == "ab<u>"
    assert tokenizer.token_id("[PAD5]") is None


def test_chat_templates() -> None:
    values = values_of() | {"tokenizer.chat_template": "main"}
    config = json.loads(texts_of(values, PATH)["tokenizer_config.json"])
    assert config["chat_template"] == "main"
    values |= {"tokenizer.chat_templates": (b"tool_use",), "tokenizer.chat_template.tool_use": "tools"}
    config = json.loads(texts_of(values, PATH)["tokenizer_config.json"])
    assert config["chat_template"] == [
        {"name": "default", "template": "main"},
        {"name": "tool_use", "template": "tools"},
    ]


def test_defaults_of_sampling() -> None:
    values = {"general.sampling.temp": float(np.float32(0.6)), "general.sampling.top_k": 20}
    found = json.loads(texts_of(values, PATH)["generation_config.json"])
    assert found == {"do_sample": True, "temperature": 0.6, "top_k": 20}
    assert texts_of({}, PATH) == {}
    for key, value in (("temp", float("inf")), ("top_p", "x"), ("top_k", float("nan")), ("min_p", True)):
        with pytest.raises(ConfigValueError, match=key):
            texts_of({f"general.sampling.{key}": value}, PATH)


@pytest.mark.parametrize("keys", [{"model": "bert"}, {"pre": "falcon"}, {"pre": None}, {"model": None}])
def test_no_tokenizer_of_another_kind(keys: dict[str, Any]) -> None:
    assert texts_of(values_of(**keys), PATH) == {}


@pytest.mark.parametrize(
    ("keys", "error", "reason"),
    [
        ({"merges": None}, ConfigValueError, "merges is None"),
        ({"merges": (b"a c",)}, TokenizerVocabularyError, "'a c'"),
        ({"merges": (b"ab",)}, TokenizerVocabularyError, "'ab'"),
        ({"merges": (b"\xff",)}, ConfigValueError, "UTF-8"),
        ({"merges": 7}, ConfigValueError, "merges is 7"),
        ({"tokens": 3}, ConfigValueError, "tokens is 3, expected a list of texts"),
        (
            {"token_type": np.zeros(3, np.int32)},
            ConfigValueError,
            "is a list of 3, expected one for each of 7",
        ),
        ({"token_type": (b"a",)}, ConfigValueError, "a list of numbers"),
        ({"add_bos_token": 1}, ConfigValueError, "add_bos_token is 1, expected true or false"),
        ({"model": 1}, ConfigValueError, "model is 1, expected a text"),
        ({"model": "llama"}, ConfigValueError, "scores is None, expected a number for each of 7 tokens"),
        ({"model": "llama", "scores": np.zeros(3, np.float32)}, ConfigValueError, "scores is a list of 3"),
        ({"model": "llama", "scores": np.zeros(7, np.int8)}, ConfigValueError, "scores is a list of 7"),
        (
            {"model": "llama", "scores": np.zeros(7, np.float32), "remove_extra_whitespaces": True},
            UnsupportedConfigError,
            "remove_extra_whitespaces",
        ),
    ],
)
def test_keys_of_the_wrong_kind(keys: dict[str, Any], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        texts_of(values_of(**keys), PATH)
