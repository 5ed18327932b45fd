"""Patterns that are followed match as Python's do, in a time that is bounded."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.compiler.checkpoint.patterns import follower

TEXTS = ("", "lm_head", "model.layers.10.mlp.gate", "model.layers.3.mlp.experts.7.gate_proj")
FOLLOWED = (
    "", ".*", "lm_head", "lm", r".*mlp\.gate$", r"model\.layers\.\d+\.mlp", r"^model.*gate(_proj)?$", "head$|gate$",
    "(a|lm_head|model)", r".*\.(?:[0-9]|1[0-5])\..*", "[a-z_]+$", "[^.]+$", r"(.*\.)?(gate|up)$", r"(.*\.)?(^model)$",
    r"\w+?\.\w*?\.3", "l?m?_?", "(lm)??_", "m(o(d(e)))l", "()", "a|", "|a", r".*\.\d{1,2}\.mlp", r"[a-z]{2}_h",
    r"\w{3,}\.", "m{0}l", ".{4,40}?gate",
)  # fmt: skip
NOT_FOLLOWED = (
    "(a+)+", "(a)*", "(a){2}", "a{100}", "a{2,1}", "a{,2}", "a{123", "(?=a)", "(?i)a", "(?P<x>a)", r"(a)\1", "(", ")",
    "(a", "a)", "[a", "[]", "[z-a]", "\\", "a**", "a++", "*", r"\b", "a" * 1001, "(" * 30 + ")" * 30,
)  # fmt: skip


@pytest.mark.parametrize("pattern", FOLLOWED)
def test_what_is_found_is_what_python_finds(pattern: str) -> None:
    found = follower(pattern)
    assert found is not None
    assert [found(text) for text in TEXTS] == [re.match(pattern, text) is not None for text in TEXTS]


@pytest.mark.parametrize("pattern", NOT_FOLLOWED)
def test_others_are_not_followed(pattern: str) -> None:
    assert follower(pattern) is None


@settings(max_examples=400)
@given(st.text(alphabet="ab.*+?()|[]^$\\d-:{}12,", max_size=14), st.text(alphabet="ab.-5", max_size=7))
def test_any_pattern_finds_what_python_finds_or_is_not_followed(pattern: str, text: str) -> None:
    found = follower(pattern)
    if found is not None:
        assert found(text) == (re.match(pattern, text) is not None)


@pytest.mark.parametrize(
    "pattern", ["(.|.)" * 199 + "#", ".*" * 400 + "#", "a?" * 400 + "a" * 60, "(a|a)?" * 160 + "#$"]
)
def test_no_pattern_takes_long(pattern: str) -> None:
    found, started = follower(pattern), time.thread_time()
    assert found is not None and not found("a" * 59)
    assert time.thread_time() - started < 10  # half a second at most; by trying all ways, for ever
