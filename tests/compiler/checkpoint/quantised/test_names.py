"""Which modules a quantization_config leaves out."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3c.compiler.checkpoint.quantised import names

MODULES = (
    "lm_head", "model.layers.0.self_attn.o_proj", "model.layers.10.mlp.gate", "model.layers.3.mlp.gate_proj",
    "model.layers.1.mlp.experts.7.up_proj", "model.layers.1.mlp.shared_experts.down_proj",
)  # fmt: skip
PATTERNS = (
    "lm_head", ".*lm_head", ".*self_attn.*", ".*mlp\\.gate$", ".*gate", "model\\.layers\\.\\d+\\.mlp\\.gate$", "^model",
    ".*mlp\\.(gate|up|gate_up|down)_proj.*", ".*shared_experts.*", ".*(?:up|down)_proj$", "model.layers.[0-9]+.mlp.*",
    "", ".*", "gate",
)  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("module", MODULES)
def test_patterns_match_as_those_of_python(pattern: str, module: str) -> None:
    assert names.follows(pattern, module) == (re.match(pattern, module) is not None)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(.*)*x", "(?=a)", "(", "(\\)", "a{1000}", "x" * 1001, "\\"])
def test_other_patterns_say_nothing(pattern: str) -> None:
    assert not names.follows(pattern, "a" * 60)


@given(st.text(alphabet="a.*\\d+()|?:$^[]09-x", max_size=30))
def test_any_pattern_is_read(pattern: str) -> None:
    names.follows(pattern, "aaaa.aaaa")


def test_long_patterns_take_linear_time() -> None:
    started = time.thread_time()
    assert not names.follows(".*a" * 300 + "$", "a" * 299)
    assert not names.follows("(.|.)" * 100 + "#", "a" * 99)
    assert time.thread_time() - started < 5


@pytest.mark.parametrize(
    ("entry", "module", "named"),
    [
        ("lm_head", "lm_head", True),
        ("mlp.gate", "model.layers.1.mlp.gate", True),
        ("mlp.gate", "model.layers.1.mlp.gate_proj", False),
        ("model.layers.*.self_attn", "model.layers.12.self_attn.o_proj", True),
        ("model.layers.*.self_attn", "model.layers.12.mlp.gate", False),
        ("model.layers.1.mlp.gate.more", "model.layers.1.mlp.gate", False),
        ("self_attn", "model.layers.0.self_attn.q_proj", True),
    ],
)
def test_names_are_those_of_components_in_a_row(entry: str, module: str, named: bool) -> None:
    assert (names.naming(module, ["other", entry]) == entry) is named


def test_whole_names_and_patterns_are_told_apart() -> None:
    entries = ["self_attn", "re:.*o_proj"]
    assert names.matching("model.layers.0.self_attn.o_proj", entries) == "re:.*o_proj"
    assert names.matching("model.layers.0.self_attn.q_proj", entries) is None
    assert names.matching("self_attn", entries) == "self_attn"
