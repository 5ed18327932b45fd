"""The tokenizer's files: what they do when whole, and one typed error for each way to be broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.runtime import errors
from dsv3c.runtime.text.tokenizer import Tokenizer

TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(bundled_model: Path) -> Tokenizer:
    config = json.loads((bundled_model / "tokenizer_config.json").read_text(encoding="utf-8"))
    return Tokenizer(bundled_model / "tokenizer.json", {**config, "chat_template": TEMPLATE})


def test_encode_adds_what_the_tokenizer_adds(bundled_model: Path, tokenizer: Tokenizer) -> None:
    reference = json.loads((bundled_model / "reference_greedy.json").read_text(encoding="utf-8"))
    assert tokenizer.encode(reference["prompt"]) == reference["prompt_ids"]
    assert tokenizer.encode_plain(reference["prompt"]) == reference["prompt_ids"][1:]
    assert tokenizer.decode(reference["prompt_ids"]) == reference["prompt"]


@given(st.text(max_size=50))
@settings(max_examples=200)
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode_plain(text)) == text


def test_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_token("bos_token") == "<｜begin▁of▁sentence｜>"
    assert tokenizer.special_token("unk_token") is None
    assert tokenizer.token_id("<｜end▁of▁sentence｜>") == 1
    assert tokenizer.vocab_size == 2048


BOS, EOS, A = 1, 2, 0
SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
PIECES = {"<b>": {"SpecialToken": {"id": "<b>", "type_id": 0}}, "<e>": {"SpecialToken": {"id": "<e>", "type_id": 0}}}
PIECES["$A"] = {"Sequence": {"id": "A", "type_id": 0}}


def small_tokenizer(folder: Path, around: str, config: dict[str, Any], bom: bytes = b"") -> Tokenizer:
    """One that knows "a" and two special tokens; `around`: a template of its post-processor, empty for none."""
    single = [PIECES[name] for name in around.split()]
    tokens = {
        "<b>": {"id": "<b>", "ids": [BOS], "tokens": ["<b>"]},
        "<e>": {"id": "<e>", "ids": [EOS], "tokens": ["<e>"]},
    }
    processor = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens}
    content = {
        "version": "1.0",
        "added_tokens": [{"id": BOS, "content": "<b>", **SPECIAL}, {"id": EOS, "content": "<e>", **SPECIAL}],
        "post_processor": processor if around else None,
        "model": {"type": "BPE", "vocab": {"a": A, "<b>": BOS, "<e>": EOS}, "merges": []},
    }
    (folder / "tokenizer.json").write_bytes(bom + json.dumps(content).encode())
    return Tokenizer(folder / "tokenizer.json", {"bos_token": "<b>", "eos_token": {"content": "<e>"}, **config})


ADDS: tuple[tuple[str, dict[str, Any], str, list[int]], ...] = (
    ("", {}, "a", [A]),
    ("", {"add_bos_token": True}, "a", [BOS, A]),
    ("", {"add_bos_token": True}, "", [BOS]),
    ("", {"add_bos_token": True}, "<b>a", [BOS, A]),
    ("", {"add_bos_token": True, "add_eos_token": True}, "a", [BOS, A, EOS]),
    ("", {"add_bos_token": True, "add_eos_token": True}, "<b>a<e>", [BOS, A, EOS]),
    ("", {"add_bos_token": True, "add_eos_token": False}, "a<e>", [BOS, A, EOS]),
    ("", {"add_bos_token": "yes"}, "a", [A]),
    ("", {"add_bos_token": True, "bos_token": "<unknown>"}, "a", [A]),
    ("", {"add_bos_token": True, "bos_token": None}, "a", [A]),
    ("", {"add_bos_token": True, "bos_token": "\ud800"}, "a", [A]),
    ("", {"add_bos_token": False}, "<b><b>a", [BOS, BOS, A]),
    ("<b> $A", {}, "a", [BOS, A]),
    ("<b> $A", {}, "<b>a", [BOS, A]),
    ("<b> $A", {"add_bos_token": True}, "a", [BOS, A]),
    ("<b> $A", {"add_bos_token": True}, "<b>a", [BOS, A]),
    ("<b> $A", {"add_bos_token": False}, "a", [A]),
    ("<b> $A", {"add_bos_token": False}, "<b>a", [BOS, A]),
    ("<b> $A <e>", {"add_bos_token": True}, "a", [BOS, A, EOS]),
    ("<b> $A <e>", {"add_eos_token": False}, "a", [BOS, A]),
    ("<b> $A <e>", {"add_eos_token": False}, "a<e>", [BOS, A, EOS]),
    ("<e> $A", {"add_bos_token": True}, "a", [BOS, EOS, A]),
)


@pytest.mark.parametrize(("around", "config", "text", "ids"), ADDS, ids=str)
def test_what_begins_and_ends_a_text_is_there_once(
    tmp_path: Path, around: str, config: dict[str, Any], text: str, ids: list[int]
) -> None:
    assert small_tokenizer(tmp_path, around, config).encode(text) == ids


@pytest.mark.parametrize("around", ["", "<b> $A"])
@pytest.mark.parametrize("config", [{}, {"add_bos_token": True}, {"add_bos_token": False}], ids=str)
def test_who_asks_decides_about_the_bos(tmp_path: Path, around: str, config: dict[str, Any]) -> None:
    tokenizer = small_tokenizer(tmp_path, around, config)
    assert tokenizer.encode("a", add_bos=True) == [BOS, A]
    assert tokenizer.encode("a", add_bos=False) == [A]
    assert tokenizer.encode("<b>a", add_bos=False) == [BOS, A]
    with pytest.raises(errors.ParameterInvalid, match="names no bos_token"):
        small_tokenizer(tmp_path, "", {"bos_token": 3}).encode("a", add_bos=True)


@pytest.mark.parametrize("around", ["", "<b> $A"])
def test_a_chat_has_the_bos_that_its_template_writes(tmp_path: Path, around: str) -> None:
    messages = [{"role": "user", "content": "a"}]
    for template, ids in (("{{ bos_token }}{{ messages[0].content }}", [BOS, A]), ("{{ messages[0].content }}", [A])):
        config = {"add_bos_token": True, "add_eos_token": True, "chat_template": template}
        assert small_tokenizer(tmp_path, around, config).encode_chat(messages) == ids


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    tokenizer = small_tokenizer(tmp_path, "", {}, b"\xef\xbb\xbf")
    assert tokenizer.encode("a") == [A]
    marked = Tokenizer(tmp_path / "tokenizer.json", {}, b"\xef\xbb\xbf{{ messages[0].role }}")
    assert marked.render_chat([{"role": "user"}]) == "user"


def test_a_template_that_is_no_text_fails_when_a_chat_asks_for_it(tmp_path: Path) -> None:
    small_tokenizer(tmp_path, "", {})
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", {}, b"{{ \xff }}")
    assert tokenizer.encode("a") == [A]
    with pytest.raises(errors.TemplateFailed, match="byte 3"):
        tokenizer.render_chat([{"role": "user"}])


def test_templates_see_what_transformers_gives_them(tmp_path: Path) -> None:
    template = "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}{{ sep_token }}{{ unk_token }}"
    tokenizer = small_tokenizer(tmp_path, "", {"sep_token": "<s>", "chat_template": template})
    assert tokenizer.render_chat([{"role": "user"}]) == "TrueTrueTrue<s>"
    assert tokenizer.render_chat([{"role": "user"}], tools=[1], add_generation_prompt=False).startswith(
        "FalseTrueFalse"
    )


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", 3, None, b"bytes"])
def test_text_invalid(tokenizer: Tokenizer, text: Any) -> None:
    with pytest.raises(errors.TextInvalid):
        tokenizer.encode(text)


def test_unknown_ids_decode_to_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([10**6]) == ""
    with pytest.raises(errors.TokenizerMalformed):
        tokenizer.decode([-1])
    with pytest.raises(errors.TokenizerMalformed):
        tokenizer.decode([2**40])


def test_chat(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    assert tokenizer.render_chat(messages) == "<｜begin▁of▁sentence｜><user>Hi"
    ids = tokenizer.encode_chat(messages)
    assert ids.count(0) == 1 and ids[0] == 0


def test_chat_template_by_name_or_none(bundled_model: Path) -> None:
    path = bundled_model / "tokenizer.json"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert Tokenizer(path, {"chat_template": named}).render_chat([{"role": "user"}]) == "d"
    assert Tokenizer(path, {"chat_template": "x"}, "from the file").render_chat([{"role": "user"}]) == "from the file"
    for config in ({}, {"chat_template": 3}, {"chat_template": [1, {"name": "x"}]}):
        assert not Tokenizer(path, config).has_chat_template
        with pytest.raises(errors.TemplateMissing):
            Tokenizer(path, config).render_chat([{"role": "user"}])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff\xff",
        b'{"version": "9.0"}',
        b"[" * 100_000,
        json.dumps({"version": "1.0", "model": {"type": "Magic"}}).encode(),
        json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}}).encode(),
        json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}).encode(),
        json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}).encode(),
        json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 2**40}, "merges": []}}).encode(),
        json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": [], "merges": {}}}).encode(),
    ],
    ids=[
        "empty", "cut", "a list", "no model", "not utf-8", "version", "deep", "model type", "merges are no pairs",
        "merge of no token", "negative id", "huge id", "vocab is a list",
    ],
)  # fmt: skip
def test_tokenizer_malformed(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(errors.TokenizerMalformed):
        Tokenizer(tmp_path / "tokenizer.json", {})


def test_odd_vocabularies_do_not_crash(tmp_path: Path) -> None:
    """Duplicate ids and overlapping added tokens are accepted or refused, never a crash."""
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for vocab, tokens in (
        ({"a": 0, "b": 0}, []),
        ({"a": 0, "ab": 5}, [{"id": 0, "content": "ab", **added}, {"id": 1, "content": "b", **added}]),
        ({}, [{"id": 7, "content": "", **added}]),
    ):
        content = {"version": "1.0", "added_tokens": tokens, "model": {"type": "BPE", "vocab": vocab, "merges": []}}
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        try:
            tokenizer = Tokenizer(tmp_path / "tokenizer.json", {})
            tokenizer.decode(tokenizer.encode("abba"))
        except errors.RuntimeFault:
            continue


@given(st.binary(max_size=4), st.integers(0, 5000))
@settings(max_examples=100)
def test_bytes_changed(tmp_path_factory: pytest.TempPathFactory, data: bytes, position: int) -> None:
    content = json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}).encode()
    position %= len(content)
    path = tmp_path_factory.mktemp("t") / "tokenizer.json"
    path.write_bytes(content[:position] + data + content[position + len(data) :])
    try:
        tokenizer = Tokenizer(path, {})
        tokenizer.decode(tokenizer.encode("ab"))
    except errors.RuntimeFault:
        return


def test_a_tokenizer_of_millions_of_lists_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b'{"version":"1.0","extra":[' + b"[]," * 2_000_000 + b"[]]}")
    with pytest.raises(errors.MalformedJson, match="more than 1500000 values"):
        Tokenizer(tmp_path / "tokenizer.json", {})
