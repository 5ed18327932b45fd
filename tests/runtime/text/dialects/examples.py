"""Answers as the models write them: by their chat templates and model cards."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

from dsv3c.runtime.text.dialects.formats import FORMATS, Format
from dsv3c.runtime.text.dialects.forms import Tools
from dsv3c.runtime.text.dialects.pieces import CallArguments, CallBegun, Piece, Text, Thought, merged
from dsv3c.runtime.text.dialects.reader import Reader

BY_NAME = {form.name: form for form in FORMATS}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    return {"type": "function", "function": {"name": name, "description": "D", "parameters": schema}}


TOOLS: Tools = [tool("get_weather", city="string", days="integer"), tool("now")]


def read(form: Format | str, answer: str, *cuts: int, opened: bool = False, tools: Tools = TOOLS) -> list[Piece]:
    """The answer, given in texts that begin at these places."""
    reader = Reader(BY_NAME[form] if isinstance(form, str) else form, opened, tools)
    places = [0, *cuts, len(answer)]
    pieces = [piece for a, b in pairwise(places) for piece in reader.push(answer[a:b])]
    return merged(pieces + reader.flush())


class Example(NamedTuple):
    form: str
    answer: str
    pieces: list[Piece]


def called(name: str, arguments: str) -> list[Piece]:
    return [CallBegun(name), CallArguments(arguments)]


TOKYO, PARIS = '{"city": "Tokyo", "days": 2}', '{"city": "Paris"}'

EXAMPLES = {
    "V3, two calls": Example(
        "deepseek-v3",
        "Let me look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        f"{TOKYO}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n"
        "{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [Text("Let me look."), *called("get_weather", TOKYO), *called("now", "{}")],
    ),
    "R1, thoughts before a call": Example(
        "deepseek-v3",
        "<think>\nThe weather.\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>"
        f"get_weather\n```json\n{PARIS}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [Thought("The weather.\n"), *called("get_weather", PARIS)],
    ),
    "V3, a fence and quotes in an argument": Example(
        "deepseek-v3",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>send\n```json\n"
        '{"text": "```py\\n\\"x\\" | y```", "path": "C:\\\\a"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        called("send", '{"text": "```py\\n\\"x\\" | y```", "path": "C:\\\\a"}'),
    ),
    "V3.1, two calls": Example(
        "deepseek-v3.1",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{TOKYO}<｜tool▁call▁end｜>"
        f"<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{PARIS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [*called("get_weather", TOKYO), *called("get_weather", PARIS)],
    ),
    "Kimi-K2, a text and two calls": Example(
        "kimi-k2",
        "I compare. <|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        f"{TOKYO}<|tool_call_end|><|tool_call_begin|>functions.get_weather:1<|tool_call_argument_begin|>{PARIS}"
        "<|tool_call_end|><|tool_calls_section_end|>",
        [Text("I compare."), *called("get_weather", TOKYO), *called("get_weather", PARIS)],
    ),
    "Kimi-K2, blanks, and a name alone": Example(
        "kimi-k2",
        "<|tool_calls_section_begin|>\n<|tool_call_begin|>\nget_weather:0 <|tool_call_argument_begin|>\n"
        '{\n  "city": "<b>"\n} \n<|tool_call_end|>\n<|tool_calls_section_end|>',
        called("get_weather", '{\n  "city": "<b>"\n}'),
    ),
    "Kimi-K2, calls end thoughts": Example(
        "kimi-k2",
        "<think>I ask.<|tool_calls_section_begin|><|tool_call_begin|>functions.now:3<|tool_call_argument_begin|>"
        "<|tool_call_end|><|tool_calls_section_end|>",
        [Thought("I ask."), *called("now", "{}")],
    ),
    "GLM-4.5, thoughts, a text and two calls": Example(
        "glm-4.5",
        "\n<think>Two places.</think>\nI look.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Tokyo"
        "</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>\n<tool_call>get_weather\n<arg_key>"
        "city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
        [Thought("Two places."), Text("I look."), *called("get_weather", TOKYO), *called("get_weather", PARIS)],
    ),
    "GLM-4.7, on one line": Example(
        "glm-4.5",
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>"
        "<tool_call>now</tool_call>",
        [*called("get_weather", PARIS), *called("now", "{}")],
    ),
    "GLM, a text with lines, quotes and brackets": Example(
        "glm-4.5",
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value> \"a\"\n</arg_key> <b></arg_value></tool_call>",
        called("get_weather", '{"city": " \\"a\\"\\n</arg_key> <b>"}'),
    ),
    "JSON, a text behind the call": Example(
        "json",
        f'I look.\n<tool_call>\n{{"name": "get_weather", "arguments": {TOKYO}}}\n</tool_call>\nSo.',
        [Text("I look."), *called("get_weather", TOKYO), Text("So.")],
    ),
    "JSON, arguments first, as a text": Example(
        "json",
        '<tool_call>{"arguments": "{\\"city\\": \\"Paris\\"}", "name": "get_weather"}</tool_call>',
        called("get_weather", PARIS),
    ),
    "JSON, a tag in an argument": Example(
        "json",
        '<tool_call>{"name": "now", "arguments": {"a": "</tool_call>\\""}}</tool_call>',
        called("now", '{"a": "</tool_call>\\""}'),
    ),
    "JSON from GLM": Example(
        "glm-4.5",
        f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>',
        called("get_weather", PARIS),
    ),
}  # fmt: skip
