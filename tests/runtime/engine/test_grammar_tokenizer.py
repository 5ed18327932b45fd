"""Texts of added tokens within grammars: they are spelled, while references to tokens stay what they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dsv3c.runtime.engine.grammar import Constraint, Grammars
from dsv3c.runtime.engine.grammar_tokenizer import is_hidden_for, without_added_texts
from dsv3c.runtime.engine.history import History
from dsv3c.runtime.text.tokenizer import Tokenizer

# The last is a byte in this vocabulary, which no text has; DeepSeek's has such added tokens.
ADDED = {"</think>": True, "<tag>": False, "ø": False}
FIRST, END = 2048, 1
VOCAB = FIRST + 2


@pytest.fixture(scope="module")
def tokenizer(bundled_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    content = json.loads((bundled_model / "tokenizer.json").read_text("utf-8"))
    like = content["added_tokens"][0]
    for number, (text, special) in enumerate(ADDED.items(), start=FIRST):
        content["added_tokens"].append({**like, "id": number, "content": text, "special": special})
    path = tmp_path_factory.mktemp("texts") / "tokenizer.json"
    path.write_text(json.dumps(content))
    return Tokenizer(path, {})


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(lambda: tokenizer, VOCAB)


def written(constraint: Constraint) -> list[int]:
    """The tokens of an answer: those that are forced, the first allowed one where there is a choice."""
    ids: list[int] = []
    while len(ids) < 64:
        history = History([5], ids)
        if constraint.finished(history):
            return ids
        forced = constraint.forced(history)
        logits = np.zeros(VOCAB, np.float32)
        constraint(logits, history)
        ids += forced or [int(np.flatnonzero(logits == 0)[0])]
    raise AssertionError("it does not end")


@pytest.mark.parametrize("text", ["</think>", "a</think>b", "<tag>", "x ø y", "<｜end▁of▁sentence｜>"])
@pytest.mark.parametrize("where", ["enum", "key", "regex", "lark", "in lark"])
def test_the_text_of_a_special_token_is_spelled(
    where: str, text: str, grammars: Grammars, tokenizer: Tokenizer
) -> None:
    keyed = {
        "type": "object",
        "properties": {text: {"type": "null"}},
        "required": [text],
        "additionalProperties": False,
    }
    name, source, expected = {
        "enum": ("json_schema", json.dumps({"enum": [text]}), json.dumps(text, ensure_ascii=False)),
        "key": ("json_schema", json.dumps(keyed), json.dumps({text: None}, ensure_ascii=False)),
        "regex": ("regex", text, text),
        "lark": ("grammar", f"start: {json.dumps(text, ensure_ascii=False)}", text),
        "in lark": ("grammar", f"start: %json {json.dumps({'enum': [text]})}", json.dumps(text, ensure_ascii=False)),
    }[where]
    ids = written(grammars.find(name, source, frozenset({END})).constraint())
    assert tokenizer.decode(ids) == expected
    assert not {FIRST, FIRST + 1, 0, 1} & set(ids)


def test_no_added_token_is_a_part_of_a_text(grammars: Grammars, tokenizer: Tokenizer) -> None:
    for name, source in (("json_schema", '{"type": "string"}'), ("regex", '"(.|\\n)*"')):
        logits = np.zeros(VOCAB, np.float32)
        constraint = grammars.find(name, source, frozenset({END})).constraint()
        constraint(logits, History([5], tokenizer.encode_plain('"a')))
        allowed = set(np.flatnonzero(logits == 0).tolist())
        assert len(allowed) > 1000 and allowed.isdisjoint({0, END, FIRST, FIRST + 1})


@pytest.mark.parametrize("reference", ["<[2048]>", "</think>"])
def test_a_token_that_a_grammar_refers_to_is_that_token(reference: str, grammars: Grammars) -> None:
    ids = written(grammars.find("grammar", f'start: "a" {reference} "b"', frozenset({END})).constraint())
    assert ids[1] == FIRST and len(ids) == 3


def test_what_is_hidden(tokenizer: Tokenizer) -> None:
    content = json.loads(without_added_texts(tokenizer.to_json()))
    texts = {token["content"] for token in content["added_tokens"]} | set(content["model"]["vocab"])
    assert texts.isdisjoint({*ADDED, "<｜end▁of▁sentence｜>"})
    merging = {"added_tokens": [{"id": 0, "content": "a"}], "model": {"vocab": {"a": 0}, "merges": [["a", "b"]]}}
    assert json.loads(without_added_texts(json.dumps(merging)))["model"] == merging["model"]
    assert without_added_texts('{"model": {"vocab": [["a", 0.5]]}}') == '{"model": {"vocab": [["a", 0.5]]}}'


def test_a_grammar_that_names_tokens_is_known() -> None:
    assert is_hidden_for("grammar", 'start: "<tag>" <[3]> # <tag>')
    assert not is_hidden_for("grammar", "start: <tag>") and not is_hidden_for("grammar", "start: $")
    assert is_hidden_for("json_schema", "<tag>") and is_hidden_for("regex", "<tag>")
