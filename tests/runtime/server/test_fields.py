"""Bodies: each error names the path of the field, and nothing of any size or depth breaks the reader."""

from __future__ import annotations

import pytest

from dsv3c.runtime.server.errors import FieldInvalid, FieldMissing, JsonInvalid, ServerFault
from dsv3c.runtime.server.fields import Body, parse_body


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[1]", "it is no object"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": 1, "a": 2}', "the key 'a' is given twice"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b'{"a": "\\ud800"}', "has a lone surrogate"),
        (b'{"\\ud800": 1}', "has a lone surrogate"),
        (b'{"a": ' + 200 * b"[" + 200 * b"]" + b"}", "nested more than 100 levels"),
        (b'{"a": ' + 100_000 * b"[", "nested too deeply"),
        (b'{"a": [' + 400_001 * b"1," + b"1]}", "more than 400000 values"),
        (b'{"a": ' + 500 * b"9" + b"}", "500 digits"),
    ],
)
def test_what_is_no_json_object_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(JsonInvalid, match=reason):
        parse_body(data)


def test_values_of_the_right_type_are_read() -> None:
    body = Body({"t": "x", "n": 0.5, "i": 3.0, "f": True, "l": ["a"], "o": {"inner": 1}, "none": None, "ids": [1, 2]})
    assert body.text("t") == "x" and body.texts("t", 4) == ["x"] and body.texts("l", 4) == ["a"]
    assert body.number("n", 0, 1) == 0.5 and body.integer("i", 0, 9) == 3 and body.flag("f") is True
    assert body.integers("ids", 4, 9) == [1, 2] and body.entries("l", 4) == ["a"]
    inner = body.inner("o")
    assert inner is not None and inner.where("inner") == "o.inner"
    assert body.text("none") is None and body.text("absent") is None and "none" not in body and "t" in body


def wrong(read: object, message: str) -> None:
    with pytest.raises(ServerFault) as caught:
        assert callable(read)
        read()
    assert str(caught.value) == message


def test_errors_name_the_path() -> None:
    body = Body({"messages": [{"content": 3}, 4], "n": True, "x": 2, "texts": ["a", 1], "ids": [1, -1]}, "body")
    message = Body({"messages": [{"content": 3}]}).objects("messages", 9)
    assert message is not None
    wrong(lambda: message[0].text("content"), "messages[0].content: it must be a text, not a number")
    wrong(lambda: body.objects("messages", 9), "body.messages[1]: it must be an object, not a number")
    wrong(lambda: body.objects("messages", 1), "body.messages: it has 2 entries, at most 1 can be")
    wrong(lambda: body.integer("n", 0, 9), "body.n: it must be an integer, not true or false")
    wrong(lambda: body.number("n", 0, 9), "body.n: it must be a number, not true or false")
    wrong(lambda: body.number("x", 0, 1), "body.x: it is 2, it must be from 0 to 1")
    wrong(lambda: body.integer("x", 3, 4), "body.x: it is 2, it must be from 3 to 4")
    wrong(lambda: body.flag("x"), "body.x: it must be true or false, not a number")
    wrong(lambda: body.inner("x"), "body.x: it must be an object, not a number")
    wrong(lambda: body.texts("texts", 9), "body.texts[1]: it must be a text, not a number")
    wrong(lambda: body.integers("ids", 9, 5), "body.ids[1]: it must be an integer from 0 to 5")
    wrong(lambda: body.required_text("y"), "body.y is missing: a text")


def test_an_error_is_short_whatever_was_sent() -> None:
    with pytest.raises(FieldInvalid) as caught:
        Body({"type": "x" * 100_000}).choice("type", ("a", "b"))
    assert len(str(caught.value)) < 200 and caught.value.field == "type"
    assert FieldMissing(field="a", what="b").field == "a"
