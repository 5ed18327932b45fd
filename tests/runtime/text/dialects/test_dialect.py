"""A model's dialect is told by its template or tokens; messages are made into what its template takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from dsv3c.runtime.errors import MessagesInvalid
from dsv3c.runtime.text.dialects.dialect import Dialect, dialect_of
from dsv3c.runtime.text.dialects.messages import Style
from dsv3c.runtime.text.dialects.pieces import CallArguments, CallBegun, Text, Thought
from dsv3c.runtime.text.tokenizer import Tokenizer
from tests.runtime.text.dialects.examples import TOOLS

EACH = "{% for m in messages %}{{ '|' + m.role + ':' }}"
END = "{% endfor %}"
# As the models' own ones do it, and no longer than that.
V3 = (
    EACH + "{% if m.role == 'assistant' and m['content'] is none %}{% for t in m['tool_calls'] %}{{ t['type'] + "
    "'<｜tool▁sep｜>' + t['function']['name'] + '\\n```json\\n' + t['function']['arguments'] + '\\n```' }}{% endfor %}"
    "{% else %}{{ m['content'] }}{% endif %}" + END
)
V31 = (
    EACH + "{{ m['content'] }}{% if m['tool_calls'] is defined %}{% for t in m['tool_calls'] %}{{ t['function']['name']"
    " + '<｜tool▁sep｜>' + t['function']['arguments'] }}{% endfor %}{% endif %}" + END
)
KIMI = (
    "{% if tools %}{{ tools | tojson }}{% endif %}" + EACH + "{% if m.role == 'tool' %}## {{ m.tool_call_id }}\n"
    "{% endif %}{{ m['content'] }}{% for t in m.get('tool_calls') or [] %}{{ t['id'] }}<|tool_call_argument_begin|>"
    "{% if t.function.arguments is string %}{{ t.function.arguments }}{% else %}{{ t.function.arguments | tojson }}"
    "{% endif %}{% endfor %}" + END
)
GLM = (
    "{% if tools %}{{ tools | tojson }}{% endif %}" + EACH + "{{ m.content }}{{ m.reasoning_content }}"
    "{% for t in m.tool_calls or [] %}{% set t = t.function %}<tool_call>{{ t.name }}{% for k, v in "
    "t.arguments.items() %}<arg_key>{{ k }}</arg_key><arg_value>{{ v }}</arg_value>{% endfor %}{% endfor %}" + END
)
QUOTING = EACH + "{{ m.content }}{% for t in m.tool_calls or [] %}{{ t.function | tojson }}{% endfor %}" + END
PLAIN = EACH + "{{ m.content }}" + END

CALL = {"id": "call_a", "type": "function", "function": {"name": "now", "arguments": '{"zone": "é"}'}}
TALK = [
    {"role": "user", "content": [{"type": "text", "text": "When "}, {"type": "text", "text": "is it?"}]},
    {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_a", "content": "noon"},
    {"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": "call_b"}]},
    {"role": "tool", "tool_call_id": "call_b", "content": "one"},
]


def tokenizer(template: str | None, *special: str) -> Tokenizer:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    made.add_special_tokens(list(special))
    made.add_tokens(["<arg_key>"] if "GLM" in special else [])
    config = {} if template is None else {"chat_template": template}
    return Tokenizer(Path("tokenizer.json"), config, None, made.to_str().encode())


def rendered(template: str, messages: list[dict[str, Any]], tools: Any = ()) -> str:
    words = tokenizer(template)
    made, variables = dialect_of(words).prompt(messages, tools)
    return words.render_chat(made, **variables)


@pytest.mark.parametrize(
    ("template", "special", "name"),
    [
        (V3, (), "deepseek-v3"),
        (V31, (), "deepseek-v3.1"),
        (KIMI, (), "kimi-k2"),
        (GLM, (), "glm-4.5"),
        (PLAIN, (), "json"),
        (PLAIN, ("<｜tool▁sep｜>",), "deepseek-v3"),
        (None, ("<|tool_call_argument_begin|>",), "kimi-k2"),
        (None, ("GLM",), "glm-4.5"),
        (None, (), "json"),
    ],
)
def test_the_template_tells_the_format_and_else_the_tokens(
    template: str | None, special: tuple[str, ...], name: str
) -> None:
    assert dialect_of(tokenizer(template, *special)).format.name == name


def test_tags_that_are_special_tokens_are_in_the_text_for_a_reader() -> None:
    words = tokenizer(V31, "<｜tool▁sep｜>", "</think>", "<other>")
    ids = [words.token_id(token) for token in ("a", "</think>", "<other>", "?", "<｜tool▁sep｜>", "a")]
    assert words.decode(ids) == "a ? a"
    assert dialect_of(words).decode(ids) == "a </think> ? <｜tool▁sep｜> a"


@pytest.mark.parametrize(
    ("template", "style"),
    [
        (V3, Style("text", True)),
        (V31, Style("text", False)),
        (KIMI, Style("text", False)),
        (GLM, Style("mapping", False)),
        (QUOTING, Style("mapping", False)),
        (PLAIN, None),
    ],
    ids=["V3", "V3.1", "Kimi", "GLM", "quoting", "plain"],
)
def test_how_a_template_takes_calls_is_found_by_trying(template: str, style: Style | None) -> None:
    assert dialect_of(tokenizer(template))._style == style


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            V3,
            "|user:When is it?|assistant:I look."
            '|assistant:function<｜tool▁sep｜>now\n```json\n{"zone": "é"}\n```|tool:noon'
            '|assistant:function<｜tool▁sep｜>now\n```json\n{"zone": "é"}\n```|tool:one',
        ),
        (
            V31,
            '|user:When is it?|assistant:I look.now<｜tool▁sep｜>{"zone": "é"}|tool:noon'
            '|assistant:now<｜tool▁sep｜>{"zone": "é"}|tool:one',
        ),
        (
            KIMI,
            '|user:When is it?|assistant:I look.functions.now:0<|tool_call_argument_begin|>{"zone": "é"}'
            '|tool:## functions.now:0\nnoon|assistant:functions.now:1<|tool_call_argument_begin|>{"zone": "é"}'
            "|tool:## functions.now:1\none",
        ),
        (
            GLM,
            "|user:When is it?|assistant:I look.<tool_call>now<arg_key>zone</arg_key><arg_value>é</arg_value>|tool:noon"
            "|assistant:<tool_call>now<arg_key>zone</arg_key><arg_value>é</arg_value>|tool:one",
        ),
        (
            PLAIN,
            '|user:When is it?|assistant:I look.<tool_call>\n{"name": "now", "arguments": {"zone": "é"}}\n</tool_call>'
            "|user:<tool_response>\nnoon\n</tool_response>"
            '|assistant:<tool_call>\n{"name": "now", "arguments": {"zone": "é"}}\n</tool_call>'
            "|user:<tool_response>\none\n</tool_response>",
        ),
    ],
    ids=["V3", "V3.1", "Kimi", "GLM", "plain"],
)  # fmt: skip
def test_a_conversation_with_calls(template: str, text: str) -> None:
    assert rendered(template, TALK) == text
    calls = [{**CALL, "function": {"name": "now", "arguments": {"zone": "é"}}}]
    assert rendered(template, [TALK[0], {**TALK[1], "tool_calls": calls}, *TALK[2:]]) == text


def test_results_of_several_calls_are_one_turn_where_the_template_knows_none() -> None:
    results = [{"role": "tool", "tool_call_id": "x", "content": each} for each in ("1", "2")]
    text = "|user:<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    assert rendered(PLAIN, results) == text


def test_tools_are_told_by_the_template_or_by_the_systems_message() -> None:
    asked = [{"role": "user", "content": "Q"}]
    assert json.dumps(TOOLS) in rendered(KIMI, asked, TOOLS)
    text = rendered(V31, [{"role": "developer", "content": "S"}, *asked], TOOLS)
    assert text.startswith("|system:S\n\n## Tools\n\n") and text.endswith("<｜tool▁calls▁end｜>|user:Q")
    example = '<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{"PARAMETER": "VALUE"}<｜tool▁call▁end｜>'
    assert "### get_weather\nDescription: D\n\nParameters: {" in text and example in text
    assert rendered(PLAIN, asked, TOOLS).startswith("|system:## Tools")


def test_thoughts_go_where_the_template_has_a_place_for_them() -> None:
    thinking = [{"role": "assistant", "content": "A", "reasoning_content": "T", "tool_calls": []}]
    assert rendered(GLM, thinking) == "|assistant:AT"
    assert "T" not in str(dialect_of(tokenizer(PLAIN)).prompt(thinking))


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"role": "user", "content": [{"type": "image_url"}]}, "message 0 has content that is no text (image_url)"),
        ({"role": "user", "content": 3}, "message 0 has content that is no text (int)"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "message 0: tool call 0 names no function"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            "message 0: tool call 0: its arguments are no JSON object",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "message 0: tool call 0: its arguments are no JSON object",
        ),
    ],
)
def test_messages_that_no_template_could_take(message: dict[str, Any], told: str) -> None:
    with pytest.raises(MessagesInvalid) as error:
        dialect_of(tokenizer(PLAIN)).prompt([message])
    assert told in str(error.value)


@pytest.mark.parametrize("template", [V3, V31, KIMI, PLAIN], ids=["V3", "V3.1", "Kimi", "plain"])
def test_an_answer_that_must_be_a_call_is_begun_as_one(template: str) -> None:
    dialect = dialect_of(tokenizer(template))
    assert begun(dialect, dialect.opening(False, "now") + "{}") == [CallBegun("now"), CallArguments("{}")]
    name = {"deepseek-v3": "now\n```json\n", "deepseek-v3.1": "now<｜tool▁sep｜>", "json": 'now", "arguments": '}
    rest = name.get(dialect.format.name, "now:0<|tool_call_argument_begin|>") + "{}"
    assert begun(dialect, dialect.opening(False) + rest) == [CallBegun("now"), CallArguments("{}")]


def test_a_call_that_must_come_ends_thoughts_that_the_prompt_has_opened() -> None:
    dialect = dialect_of(tokenizer(GLM))
    reader = dialect.reader(True, TOOLS)
    pieces = reader.push(dialect.opening(True, "get_weather") + "<arg_key>city</arg_key><arg_value>")
    assert pieces == [CallBegun("get_weather"), CallArguments('{"city": "')]


def begun(dialect: Dialect, answer: str) -> list[Text | Thought | CallBegun | CallArguments]:
    return dialect.reader(False, TOOLS).push(answer)
