"""Answers with thoughts and calls are read as they are written, and nothing of them is lost."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dsv3c.runtime.text.dialects.formats import FORMATS, Format
from dsv3c.runtime.text.dialects.pieces import CallArguments, CallBegun, Piece, Text, Thought
from dsv3c.runtime.text.dialects.reader import Reader
from dsv3c.runtime.text.scan import overlap
from dsv3c.runtime.text.thoughts import CLOSE, OPEN
from tests.runtime.text.dialects.examples import BY_NAME, EXAMPLES, PARIS, TOOLS, Example, called, read

EACH_FORMAT = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
_WORD = re.compile(r"w\d+w")


def told(pieces: list[Piece]) -> str:
    return " ".join(piece.name if isinstance(piece, CallBegun) else piece.text for piece in pieces)


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_published_examples(example: Example) -> None:
    assert read(example.form, example.answer) == example.pieces


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_pieces_are_the_same_however_an_answer_is_cut(example: Example) -> None:
    answer, every = example.answer, range(1, len(example.answer))
    assert read(example.form, answer, *every) == example.pieces
    for cut in every:
        assert read(example.form, answer, cut) == example.pieces, f"cut before {answer[cut:]!r}"
        assert read(example.form, answer, *range(cut, len(answer), cut)) == example.pieces


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_an_answer_that_breaks_off_gives_the_beginning_of_its_calls(example: Example) -> None:
    def calls(pieces: list[Piece]) -> str:
        """What the calls say, the end of one marked by the beginning of the next."""
        of_calls = (piece for piece in pieces if isinstance(piece, CallBegun | CallArguments))
        return "".join(f"@{piece.name} " if isinstance(piece, CallBegun) else piece.text for piece in of_calls)

    whole = calls(example.pieces)
    for end in range(len(example.answer)):
        begun = calls(read(example.form, example.answer[:end]))
        # A tag or a fence that is cut through may have been meant as a text.
        uncut = begun[: len(begun) - overlap(begun, BY_NAME[example.form].tags)].rstrip("`\n ")
        assert whole.startswith(begun) or whole.startswith(uncut)


def test_arguments_are_told_as_they_come() -> None:
    for form, start, more in (
        ("deepseek-v3.1", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>", ['{"a"', ": 1", "2"]),
        ("glm-4.5", "<tool_call>get_weather<arg_key>city</arg_key><arg_value>", ["To", "ky", "o"]),
        ("json", '<tool_call>{"name": "now", "arguments": {', ['"a"', ": 1", "2"]),
    ):
        reader = Reader(BY_NAME[form], False, TOOLS)
        assert isinstance(reader.push(start)[0], CallBegun)
        assert [reader.push(text) for text in more] == [[CallArguments(text)] for text in more]


@EACH_FORMAT
def test_without_tools_all_is_text(form: Format) -> None:
    for example in EXAMPLES.values():
        pieces = read(form, example.answer, tools=())
        assert not any(isinstance(piece, CallBegun | CallArguments) for piece in pieces)
        assert "".join(told(pieces).split()) == "".join(re.sub("</?think>", "", example.answer).split())


@pytest.mark.parametrize(
    ("form", "answer"),
    [
        ("deepseek-v3", "<｜tool▁calls▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁calls▁end｜>"),
        ("deepseek-v3", " \n<｜tool▁calls▁begin｜> <｜tool▁call▁begin｜>a<｜tool▁sep｜>now\n{}<｜tool▁call▁end｜> "),
        ("deepseek-v3.1", "a  <｜tool▁calls▁begin｜><｜tool▁calls▁end｜>"),
        ("deepseek-v3.1", "<｜tool▁call▁begin｜>no name here<｜tool▁sep｜>{}<｜tool▁call▁end｜>"),
        ("kimi-k2", "<|tool_calls_section_begin|><|tool_call_begin|>0<|tool_call_argument_begin|>{}<|tool_call_end|>"),
        ("kimi-k2", "<|tool_calls_section_begin|>\n\n<|tool_call_beg"),
        ("glm-4.5", "Write <tool_call> and </tool_call>.\n"),
        ("glm-4.5", "<tool_call>two words</tool_call>"),
        ("glm-4.5", "<tool_call>unknown</tool_call>"),
        ("glm-4.5", "<tool_call>" + "x" * 600 + "<arg_key>"),
        ("json", "<tool_call>plain</tool_call>"),
        ("json", '<tool_call>{"name": "now", "arguments": {}, "id": 1</tool_call>'),
        ("json", '<tool_call>{"arguments": {}, "name": "now", "id": 1}</tool_call>'),
        ("json", '<tool_call>{"name": "now", "arguments": [1]}</tool_call>'),
        ("json", '<tool_call>{"name": "now"'),
        ("json", "no tags,\n but blanks \n\n"),
    ],
)  # fmt: skip
def test_what_is_no_call_is_text(form: str, answer: str) -> None:
    pieces = read(form, answer)
    if not any(isinstance(piece, CallBegun) for piece in pieces):
        assert pieces == [Text(answer)]
    else:  # a call with something behind it that belongs to none
        assert pieces == [*called("now", "{}"), Text(', "id": 1</tool_call>')]


def test_a_call_that_goes_wrong_within_its_arguments_keeps_what_was_right() -> None:
    answer = "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value> but <b></tool_call>"
    assert read("glm-4.5", answer) == [*called("get_weather", PARIS), Text("but <b></tool_call>")]
    answer = '<tool_call>{"name": "now", "arguments": {"a": 1</tool_call>'
    assert read("json", answer) == called("now", '{"a": 1')
    answer = "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{]<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁calls▁end｜>"
    assert read("deepseek-v3.1", answer) == [*called("now", "{]"), *called("now", "{}")]


@pytest.mark.parametrize(
    ("kind", "written", "json_text"),
    [
        ({"type": "string"}, "12", '"12"'),
        ({"type": "integer"}, " 12 ", "12"),
        ({"type": "integer"}, "many", '"many"'),
        ({"type": ["string", "null"]}, "null", "null"),
        ({"type": ["string", "null"]}, "12", '"12"'),
        ({"anyOf": [{"type": "string"}, {"type": "object"}]}, '{"a": [1, "é"]}', '{"a": [1, "é"]}'),
        ({"enum": ["1", "2"]}, "1", '"1"'),
        ({"const": 5}, "5", "5"),
        ({"type": "boolean"}, "true", "true"),
        ({}, "[1, 2]", "[1, 2]"),
        ({}, "Paris", '"Paris"'),
        ({"type": "number"}, "NaN", '"NaN"'),
    ],
)
def test_the_schema_says_what_a_value_between_tags_is(kind: dict[str, object], written: str, json_text: str) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": kind}}}}]
    answer = f"<tool_call>f<arg_key>x</arg_key><arg_value>{written}</arg_value></tool_call>"
    assert read("glm-4.5", answer, tools=tools) == called("f", f'{{"x": {json_text}}}')


_NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,12}", fullmatch=True)
_PLAIN = st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]), max_size=8)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | _PLAIN, lambda inner: st.lists(inner, max_size=2), max_leaves=4
)


@EACH_FORMAT
def test_when_a_call_is_over(form: Format) -> None:
    """Not before its last tag, and not by what only looks like one."""
    call = form.forms[0].write("get_weather", {"city": "Paris"}, 0)
    reader = Reader(form, False, TOOLS)
    told = []
    for char in "I look. " + "".join(form.section[:1]) + call:
        assert not reader.has_called
        told += reader.push(char)
    assert reader.has_called and any(isinstance(piece, CallBegun) for piece in told)
    other = Reader(form, False, TOOLS)
    other.push(f"{form.forms[0].opener} {form.tags[1]}, she said.")
    assert not other.has_called
    assert not Reader(form, False, ()).has_called


@EACH_FORMAT
@settings(max_examples=20)
@given(calls=st.lists(st.tuples(_NAMES, st.dictionaries(_PLAIN, _VALUES, max_size=3)), min_size=1, max_size=3))
def test_calls_are_read_as_they_are_written(form: Format, calls: list[tuple[str, dict[str, object]]]) -> None:
    kinds = {str: "string", type(None): "null", bool: "boolean", int: "integer", list: "array"}
    tools = []
    for name, arguments in calls:
        if name in [each["function"]["name"] for each in tools]:
            return  # one schema a name
        properties = {key: {"type": kinds[type(value)]} for key, value in arguments.items()}
        tools.append({"type": "function", "function": {"name": name, "parameters": {"properties": properties}}})
    opener, closer = form.section or ("", "")
    answer = opener + "".join(form.forms[0].write(*call, number) for number, call in enumerate(calls)) + closer
    pieces = read(form, answer, tools=tools)
    names = [piece.name for piece in pieces if isinstance(piece, CallBegun)]
    given_ = [json.loads(piece.text) for piece in pieces if isinstance(piece, CallArguments)]
    assert list(zip(names, given_, strict=True)) == calls and len(pieces) == 2 * len(calls)


def rubble(form: Format) -> st.SearchStrategy[str]:
    """Texts of tags, parts of tags, whole calls and words, each of which stands once."""
    whole = [example.answer for example in EXAMPLES.values() if example.form == form.name]
    tags = [*form.tags, *(tag[:-2] for tag in form.tags), "<think>", "</think>"]
    marks = ["function", "{", "}", '"', "```json\n", "\n", " "]
    heads = ['{"name": "w", "arguments": ', "get_weather\n<arg_key>city</arg_key>", "now<｜tool▁sep｜>"]
    parts = st.lists(st.sampled_from([*tags, *marks, *heads, *whole, "@", "@", "@"]), max_size=14)
    return parts.map(_numbered)


def _numbered(parts: list[str]) -> str:
    return "".join(f"w{number}w" if part == "@" else part for number, part in enumerate(parts))


@EACH_FORMAT
@settings(max_examples=60)
@given(data=st.data())
def test_no_word_is_lost_and_no_cut_matters(form: Format, data: st.DataObject) -> None:
    answer = data.draw(rubble(form))
    opened = data.draw(st.booleans())
    pieces = read(form, answer, opened=opened)
    assert _WORD.findall(told(pieces)) == _WORD.findall(answer)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(answer)), max_size=6)))
    assert read(form, answer, *cuts, opened=opened) == pieces
    assert read(form, answer, *range(1, len(answer)), opened=opened) == pieces


@EACH_FORMAT
@settings(max_examples=30)
@given(text=st.text(max_size=40), opened=st.booleans())
def test_a_text_without_tags_stays_as_it_is(form: Format, text: str, opened: bool) -> None:
    assume(not any(tag in text for tag in (OPEN, CLOSE, *form.tags)))
    pieces = read(form, text, opened=opened)
    expected = text.lstrip() if opened else text
    assert pieces == ([(Thought if opened else Text)(expected)] if expected else [])
