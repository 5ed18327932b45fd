"""Which tokens a grammar allows, on the bundled tokenizer: against a reading of the pattern, and as a function of the
history alone."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c.runtime import errors
from dsv3c.runtime.engine import grammar
from dsv3c.runtime.engine.grammar import Constraint, Grammars
from dsv3c.runtime.engine.history import History
from dsv3c.runtime.text.tokenizer import Tokenizer

VOCAB = 2048
END = 1

Compile = Callable[..., Constraint]


@pytest.fixture(scope="module")
def tokenizer(bundled_model: Path) -> Tokenizer:
    return Tokenizer(bundled_model / "tokenizer.json", {})


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(lambda: tokenizer, VOCAB)


@pytest.fixture(scope="module")
def follow(grammars: Grammars) -> Compile:
    """follow(regex=...): a new constraint."""

    def made(ends: frozenset[int] = frozenset({END}), **guide: str) -> Constraint:
        (given,) = guide.items()
        return grammars.find(*given, ends).constraint()

    return made


def allowed(constraint: Constraint, history: History, vocab: int = VOCAB) -> list[int]:
    logits = np.zeros(vocab, np.float32)
    constraint(logits, history)
    assert set(np.unique(logits)) <= {-np.inf, 0}
    return np.flatnonzero(logits == 0).tolist()


def after(tokenizer: Tokenizer, text: str) -> History:
    return History([5, 6], tokenizer.encode_plain(text))


DATE = ["0123456789"] * 4 + ["-"] + ["01"] + ["0123456789"]


@pytest.mark.parametrize("text", ["", "1", "19", "199", "1999-", "1999-1"])
def test_a_token_is_allowed_where_the_pattern_goes_on_with_it(tokenizer: Tokenizer, follow: Compile, text: str) -> None:
    def fits(piece: str) -> bool:
        rest = DATE[len(text) :]
        return 0 < len(piece) <= len(rest) and all(map(str.__contains__, rest, piece))

    expected = [token for token in range(VOCAB) if fits(tokenizer.decode([token]))]
    assert len(expected) >= 2
    assert allowed(follow(regex="[0-9]{4}-[01][0-9]"), after(tokenizer, text)) == expected


@pytest.mark.parametrize(
    ("regex", "text", "forced", "finished"),
    [
        ("abc|abd", "", "ab", False),
        ("abc|abd", "ab", "", False),
        ("abc|abd", "abd", "", True),
        ("ab?", "a", "", False),  # the end is a choice
        ("(once upon a time )+", "once upon a ", "time ", False),
        ("", "", "", True),
        (".*", "x", "", False),
    ],
)
def test_what_is_forced_is_neither_a_choice_nor_the_end(
    tokenizer: Tokenizer, follow: Compile, regex: str, text: str, forced: str, finished: bool
) -> None:
    constraint, history = follow(regex=regex), after(tokenizer, text)
    assert forced.startswith(tokenizer.decode(constraint.forced(history)))
    assert bool(constraint.forced(history)) == bool(forced)
    assert constraint.finished(history) == finished


def test_end_tokens_are_allowed_exactly_where_the_grammar_may_end(tokenizer: Tokenizer, follow: Compile) -> None:
    """Also one that is a piece of text for the grammar, although the request ends by it."""
    will = tokenizer.encode_plain(" will")
    assert len(will) == 1
    ends = frozenset({END, *will})
    constraint = follow(ends, regex="[a-z ]+!?")
    assert not ends & set(allowed(constraint, after(tokenizer, "")))
    assert ends <= set(allowed(constraint, after(tokenizer, "she")))
    assert allowed(constraint, after(tokenizer, "she!")) == sorted(ends)
    assert constraint.finished(after(tokenizer, "she!"))
    assert not set(will) & set(follow(ends, regex="I will go").forced(after(tokenizer, "I")))


def test_a_constraint_is_a_function_of_the_history(tokenizer: Tokenizer, follow: Compile) -> None:
    """As beams and refused drafts need it: asked about texts in any order, it says what a new one says."""
    schema = '{"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3}'
    texts = ["", "[", '["red', '["red", "gr', '["red", "blue"', '["blue"]', '["blue", "green", "red"]', "[]"]
    histories = [after(tokenizer, text) for text in texts]
    expected = [allowed(follow(json_schema=schema), history) for history in histories]
    constraint, order = follow(json_schema=schema), random.Random(5)
    for place in order.choices(range(len(texts)), k=60):
        assert allowed(constraint, histories[place]) == expected[place]
        assert constraint.finished(histories[place]) == (expected[place] == [END])
        constraint.forced(histories[place])


@pytest.mark.parametrize("vocab", [VOCAB + 52, VOCAB - 148])
def test_logits_may_have_more_rows_than_the_tokenizer_has_ids_or_less(tokenizer: Tokenizer, vocab: int) -> None:
    constraint = Grammars(lambda: tokenizer, vocab).find("regex", "(?s:.+)x", frozenset({END})).constraint()
    found = set(allowed(constraint, History([5]), vocab))
    usual = allowed(
        Grammars(lambda: tokenizer, VOCAB).find("regex", "(?s:.+)x", frozenset({END})).constraint(), History([5])
    )
    assert found == {token for token in usual if token < vocab}
    assert len(found) > 1700


def test_texts_of_one_grammar_do_not_disturb_each_other(tokenizer: Tokenizer, follow: Compile) -> None:
    first, second = follow(regex="a+b"), follow(regex="a+b")
    before = allowed(second, after(tokenizer, ""))
    allowed(first, after(tokenizer, "aaa"))
    assert allowed(second, after(tokenizer, "")) == before


def test_a_grammar_is_compiled_once(tokenizer: Tokenizer) -> None:
    reads = []
    grammars = Grammars(lambda: (reads.append(1), tokenizer)[1], VOCAB)
    ends = frozenset({END})
    first = grammars.find("regex", "a+", ends)
    assert grammars.find("regex", "a+", ends) is first
    assert grammars.find("grammar", 'start: "a"', ends) is not first
    for number in range(grammar.KEPT):
        grammars.find("regex", f"a{number}", ends)
    assert grammars.find("regex", "a+", ends) is not first
    assert len(reads) == 1


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("grammar", 'start: "a" b', 'unknown name: "b"'),
        ("grammar", "start: X\nX: /[/", "unclosed character class"),
        ("grammar", "", "Empty grammar"),
        ("grammar", 'start: "a" start', "no end: rule `start`"),
        ("grammar", 'start: %json {"$ref": "#/nope"}', "does not exist"),
        ("regex", "(", "unclosed group"),
        ("regex", "a(?=b)", "look-around"),
        ("regex", r"[^\s\S]", "allows no text"),
        ("json_schema", '{"type": "nope"}', "Invalid type: nope"),
        ("json_schema", '{"not": {}}', 'Unimplemented keys: \\["not"\\]'),
        ("json_schema", '{"properties": {"a": {"$ref": "#/x"}}}', "'/x' does not exist"),
        ("json_schema", '{"$ref": "http://example.com/x"}', "http://example.com/x"),
        ("json_schema", '{"enum": []}', "Unsatisfiable"),
        ("json_schema", '{"$ref": "#"}', "no end: .*'#'"),
        ("json_schema", '{"a":' * 200 + "1" + "}" * 200, "recursion limit"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_cannot_be_followed_says_why_in_a_line(grammars: Grammars, name: str, text: str, reason: str) -> None:
    with pytest.raises(errors.GrammarInvalid, match=reason) as caught:
        grammars.find(name, text, frozenset({END}))
    assert str(caught.value).startswith(f"{name} cannot be followed: ")
    assert str(caught.value).count("\n") == 1  # and a hint


def test_a_model_without_end_tokens_needs_one(grammars: Grammars) -> None:
    with pytest.raises(errors.GrammarInvalid, match="give eos_token_id"):
        grammars.find("regex", "a", frozenset())


def test_the_package_is_asked_for_where_it_is_missing(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(errors.GuidanceMissing, match=r"pip install 'dsv3c\[guidance\]'"):
        Grammars(lambda: tokenizer, VOCAB).find("regex", "a", frozenset({END}))


def test_a_tokenizer_whose_tokens_are_no_bytes_is_refused(tmp_path: Path) -> None:
    words: Any = {"type": "WordLevel", "vocab": {"a": 0, "</s>": 1}, "unk_token": "a"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": words}))
    with pytest.raises(errors.TokenizerUnsuitable, match="byte-level BPE"):
        Grammars(lambda: Tokenizer(path, {}), 2).find("regex", "a", frozenset({1}))


def test_a_grammar_that_leads_nowhere_is_told_where_it_does(tokenizer: Tokenizer, follow: Compile) -> None:
    constraint = follow(grammar='start: "c" X\nX: /a[^\\s\\S]/')
    with pytest.raises(errors.GrammarFailed, match=r"after 1 tokens of the answer .* allows no text here"):
        allowed(constraint, after(tokenizer, "c"))


def test_a_schema_that_would_take_long_to_compile_is_refused_before(follow: Compile) -> None:
    kinds = [{"type": "object", "properties": {f"{kind} {n}": {} for n in range(30)}} for kind in range(300)]
    with pytest.raises(errors.GrammarInvalid, match=r"json_schema cannot be followed: .* too big"):
        follow(json_schema=json.dumps({"anyOf": kinds}))
