from __future__ import annotations

from pathlib import Path

import pytest

from dsv3c.compiler.checkpoint.errors import ConfigValueError, MissingConfigKeyError
from dsv3c.compiler.checkpoint.fields import ConfigFields

FIELDS = ConfigFields(
    {"n": 3, "x": 0.5, "b": False, "s": "one", "o": {"n": 4}, "null": None, "t": True}, Path("config.json")
)


def test_values_of_the_right_kind() -> None:
    assert FIELDS.integer("n", 1, 3) == 3
    assert FIELDS.number("x", 0, 1) == 0.5
    assert FIELDS.number("n", 0, 5) == 3.0
    assert FIELDS.boolean("b") is False
    assert FIELDS.choice("s", ("one", "two")) == "one"
    assert FIELDS.object("o").integer("n", 0, 9) == 4
    assert FIELDS.object("null").values == FIELDS.object("absent").values == {}


def test_null_counts_as_absent() -> None:
    assert FIELDS.integer("null", 1, 9, 7) == FIELDS.integer("absent", 1, 9, 7) == 7
    assert FIELDS.boolean("null", False) is False
    for key in ("null", "absent"):
        assert not FIELDS.has(key)
        with pytest.raises(MissingConfigKeyError, match=key):
            FIELDS.integer(key, 0, 9)


def test_wrong_kinds_name_key_value_and_range() -> None:
    with pytest.raises(ConfigValueError, match=r"config.json: n is 3, expected an integer from 4 to 9"):
        FIELDS.integer("n", 4, 9)
    with pytest.raises(ConfigValueError, match="t is True"):
        FIELDS.integer("t", 0, 9)
    with pytest.raises(ConfigValueError, match="t is True"):
        FIELDS.number("t", 0, 9)
    with pytest.raises(ConfigValueError, match="n is 3, expected true or false"):
        FIELDS.boolean("n")
    with pytest.raises(ConfigValueError, match="expected one of two, three"):
        FIELDS.choice("s", ("two", "three"))
    with pytest.raises(ConfigValueError, match=r"o\.n is 4"):
        FIELDS.object("o").integer("n", 0, 3)
