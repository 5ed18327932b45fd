"""A schema holds for what comes after the thoughts, whether their tag is a token or a text."""

from __future__ import annotations

from pathlib import Path

import llguidance
import pytest

from dsv3c.runtime.server.guided import after_thoughts
from dsv3c.runtime.text.tokenizer import Tokenizer
from tests.runtime.server.conftest import SPECIAL, VOCAB, write_texts

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("special", [SPECIAL, SPECIAL[:2]], ids=["a token", "a text"])
@pytest.mark.parametrize(
    ("text", "follows", "complete"),
    [
        ('hm <x>\n</think>\n\n{"a": 24}', True, True),
        ('</think>{"a": 1}', True, True),
        ('x</think>y{"a": 1}', False, False),
        ('hm {"a": 24}', True, False),  # all of it is thought
    ],
)
def test_thoughts_are_free_and_the_answer_is_not(
    tmp_path: Path, special: tuple[str, ...], text: str, follows: bool, complete: bool
) -> None:
    write_texts(tmp_path, special)
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", {})
    grammar = llguidance.LLMatcher.grammar_from_lark(after_thoughts(SCHEMA, tokenizer))
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer(tokenizer.to_json(), VOCAB, [1]), grammar, log_level=0)
    ids = tokenizer.encode_plain(text)
    assert (matcher.try_consume_tokens(ids) == len(ids), matcher.is_accepting()) == (follows, complete)
