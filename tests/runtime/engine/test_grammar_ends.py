"""What a grammar can begin and never end is found, and nothing else is."""

from __future__ import annotations

import pytest

from dsv3c.runtime.engine.grammar_ends import endless_part
from dsv3c.runtime.engine.lark_rules import read_rules

NODE = '"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}, "required": ["next"]}'


@pytest.mark.parametrize(
    ("schema", "ref"),
    [
        ('{"$ref": "#"}', "#"),
        ('{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}', "#"),
        ('{"type": "array", "items": {"$ref": "#"}, "minItems": 1}', "#"),
        ('{"type": "array", "prefixItems": [{"type": "null"}, {"$ref": "#"}], "minItems": 2}', "#"),
        (f'{{"$ref": "#/$defs/n", "$defs": {{{NODE}}}}}', "#/$defs/n"),
        (f'{{"properties": {{"a": {{"$ref": "#/$defs/n"}}}}, "$defs": {{{NODE}}}}}', "#/$defs/n"),  # once it is begun
        (
            '{"anyOf": [{"type": "null"}, {"$ref": "#/$defs/b"}], "$defs": {"b": {"allOf": [{"$ref": "#/$defs/b"}]}}}',
            "b",
        ),
        ('{"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"oneOf": [{"$ref": "#/$defs/a~1b"}]}}}', "#/$defs/a~1b"),
    ],
)
def test_a_schema_that_always_needs_itself(schema: str, ref: str) -> None:
    found = endless_part("json_schema", schema)
    assert found is not None
    assert ref in found


@pytest.mark.parametrize(
    "schema",
    [
        '{"type": "object", "properties": {"a": {"$ref": "#"}}}',
        '{"type": "object", "properties": {"a": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}, "required": ["a"]}',
        '{"type": "array", "items": {"$ref": "#"}}',
        '{"type": "array", "prefixItems": [{"type": "null"}, {"$ref": "#"}], "minItems": 1}',
        '{"type": ["object", "null"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]}',
        '{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["b"]}',
        f'{{"type": "string", "$defs": {{{NODE}}}}}',  # nothing leads there
        '{"const": {"$ref": "#"}}',
    ],
)
def test_a_schema_that_can_end(schema: str) -> None:
    assert endless_part("json_schema", schema) is None


@pytest.mark.parametrize(
    ("grammar", "rule"),
    [
        ('start: "a" start', "start"),
        ('start: ("a" | "b") start', "start"),
        ('start: "b" | "a" bad // c\n\nbad: "x" bad', "bad"),  # once it is begun
        ('start: a*\na: "x" a', "a"),
        ("start: a\na: b\nb: a", "start"),
        ('start: "a" start{1,2}', "start"),
        ('start: "a" start~1..2', "start"),
        ('start: "a".."z" start+', "start"),
        ('start: x\nx[lazy, max_tokens=3]: /a+/ x -> name\n  | X x\nX: "/"', "start"),
        ('start: %json {"type": "array", "items": {"$ref": "#"}, "minItems": 1}', "#"),
    ],
)
def test_a_rule_that_always_needs_itself(grammar: str, rule: str) -> None:
    found = endless_part("grammar", grammar)
    assert found is not None
    assert rule in found


@pytest.mark.parametrize(
    "grammar",
    [
        'start: "a" start | "b"',
        '?start: expr\n?expr: term ("+" term)*\nterm: INT | "(" expr ")"\n%import common.INT\n%ignore /[ \\t]+/',
        'start: "a"\n  | "b" start\n\n# c\nX: /x\\/[^a]/i\n',
        'start: (\n "a"\n | start "b"\n)\n',
        'start: "a" [start]',
        'start: "a" start?',
        'start: "a" start~0..2',
        'start: "a" start{0,2}',
        'start: "a" <end> %json {"type": "array", "items": {"$ref": "#"}} %regex {"substring_words": "a b"}',
        'start: "a"\nunused: "b" unused',
        "start:",
    ],
)
def test_a_grammar_that_can_end(grammar: str) -> None:
    assert read_rules(grammar) is not None
    assert endless_part("grammar", grammar) is None


@pytest.mark.parametrize(
    "grammar", ["start: a::0x0\na::_: start", 'start: %lark { start: "a" }', "start: @sub", "start: ("]
)
def test_a_grammar_that_is_not_understood_is_let_through(grammar: str) -> None:
    assert read_rules(grammar) is None
    assert endless_part("grammar", grammar) is None
