"""The arguments of a tool that has to be called follow its schema, in every format whose arguments are JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llguidance
import pytest

from dsv3c.runtime.engine.grammar_tokenizer import without_added_texts
from dsv3c.runtime.server.asked import ToolChoice
from dsv3c.runtime.server.forced import forced_calls, is_strict
from dsv3c.runtime.text.dialects.dialect import Dialect
from dsv3c.runtime.text.dialects.formats import FORMATS
from dsv3c.runtime.text.tokenizer import Tokenizer
from tests.runtime.server.conftest import write_texts

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "time"}},
]
CALLING = [form for form in FORMATS if form.name != "glm-4.5"]


def follows(folder: Path, number: int, tags: bool, choice: ToolChoice, text: str) -> bool:
    """Whether this answer is allowed, the beginning of which stands in the prompt. tags: whether they are tokens."""
    form = CALLING[number]
    write_texts(folder, ("<b>", "<e>", *(dict.fromkeys(form.tags) if tags else ())))
    tokenizer = Tokenizer(folder / "tokenizer.json", {})
    dialect = Dialect(form, tokenizer)
    grammar = forced_calls(dialect, TOOLS, choice, tokenizer)
    assert grammar is not None
    ids = llguidance.LLTokenizer(without_added_texts(tokenizer.to_json()), tokenizer.id_bound, [1])
    source = llguidance.LLMatcher.grammar_from_lark(grammar)
    matcher = llguidance.LLMatcher(ids, source, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    opening = dialect.opening(opened=False, name=choice.name)
    whole = tokenizer.encode_plain(text.removeprefix(opening))
    assert text.startswith(opening)
    return matcher.try_consume_tokens(whole) == len(whole) and matcher.is_accepting()


def written(number: int, *calls: tuple[str, dict[str, Any]]) -> str:
    form = CALLING[number]
    texts = [form.forms[0].write(name, arguments, at) for at, (name, arguments) in enumerate(calls)]
    return "".join(form.section[:1]) + "\n".join(texts) + "".join(form.section[1:])


OSLO, WRONG, TIME = ("weather", {"city": "Oslo"}), ("weather", {"city": "Bonn"}), ("time", {"at": [1, "é"]})
ANY, NAMED, ONE = ToolChoice("required"), ToolChoice("required", "weather"), ToolChoice("required", single=True)


@pytest.mark.parametrize("tags", [True, False], ids=["tokens", "texts"])
@pytest.mark.parametrize("number", range(len(CALLING)), ids=[form.name for form in CALLING])
@pytest.mark.parametrize(
    ("choice", "calls", "allowed"),
    [
        (NAMED, [OSLO], True),
        (NAMED, [WRONG], False),
        (NAMED, [OSLO, OSLO], False),
        (ANY, [OSLO], True),
        (ANY, [TIME, OSLO, TIME], True),
        (ANY, [TIME, WRONG], False),
        (ONE, [TIME], True),
        (ONE, [TIME, OSLO], False),
    ],
)
def test_calls_follow_their_schemas(
    choice: ToolChoice, calls: list[Any], allowed: bool, number: int, tags: bool, tmp_path: Path
) -> None:
    assert follows(tmp_path, number, tags, choice, written(number, *calls)) == allowed


def test_arguments_that_are_no_json_are_not_held(tmp_path: Path) -> None:
    write_texts(tmp_path)
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", {})
    (glm,) = (form for form in FORMATS if form.name == "glm-4.5")
    assert forced_calls(Dialect(glm, tokenizer), TOOLS, ANY, tokenizer) is None


def test_a_tool_is_strict_where_it_may_be_called() -> None:
    strict = {"type": "function", "function": {"name": "strict", "strict": True}}
    assert is_strict([*TOOLS, strict], ANY) and is_strict([*TOOLS, strict], ToolChoice("required", "strict"))
    assert not is_strict([*TOOLS, strict], NAMED) and not is_strict(TOOLS, ANY)
