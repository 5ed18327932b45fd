from __future__ import annotations

from typing import ClassVar

import pytest

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Graph, Value, parse_graph
from dsv3c.compiler.core.pattern import Match, P, Pattern
from dsv3c.compiler.core.rewrite import Rule, rewrite_graph

TEXT = """graph g {
  %x: f32[4] = input()
  %1: f32[4] = cos(%x)
  %2: f32[4] = sin(%1)
  %3: f32[4] = sin(%2)
  %4: f32[4] = mul(%3, %3)
  return r=%4
}"""


class DropSine(Rule):
    """sin(x) -> x"""

    pattern: ClassVar[Pattern] = P.sin(P.any("x"), name="sine")

    def rewrite(self, match: Match) -> Value:
        return match["x"]


class DropSineOfSine(DropSine):
    def check(self, match: Match) -> str | None:
        return None if match["x"].op == "sin" else f"{match['x']!r} is no sine"


class CosineOfRsqrt(Rule):
    pattern: ClassVar[Pattern] = P.sin(P.cos(P.rsqrt(P.any("x"))))

    def rewrite(self, match: Match) -> Value:
        return match["x"]


class DoubleCosine(Rule):
    """cos(x) -> cos(cos(x)), which must not be visited again."""

    pattern: ClassVar[Pattern] = P.cos(P.any("x"), name="cosine")

    def rewrite(self, match: Match) -> Value:
        return ops.apply("cos", (match["cosine"],), {})


def graph() -> Graph:
    return parse_graph(TEXT)


def test_a_rule_is_applied_at_each_value_and_counted() -> None:
    result, count = rewrite_graph(graph(), (DropSine(),), "drop")
    assert count == 2
    assert [value.op for value in result.values()] == ["input", "cos", "mul"]


def test_a_graph_without_a_match_is_returned_as_it_is() -> None:
    result, count = rewrite_graph(graph(), (CosineOfRsqrt(),), "none")
    assert count == 0
    assert result == graph()


def test_a_refused_match_stays() -> None:
    result, count = rewrite_graph(graph(), (DropSineOfSine(),), "drop")
    assert count == 1
    assert [value.op for value in result.values()] == ["input", "cos", "sin", "mul"]


def test_a_result_is_not_rewritten_again() -> None:
    result, count = rewrite_graph(graph(), (DoubleCosine(),), "double")
    assert count == 1
    assert result.count("cos") == 2


def test_the_next_rule_gets_what_the_first_refuses() -> None:
    class SineToCosine(Rule):
        pattern: ClassVar[Pattern] = P.sin(P.any("x"))

        def rewrite(self, match: Match) -> Value:
            return ops.apply("cos", (match["x"],), {})

    result, count = rewrite_graph(graph(), (DropSineOfSine(), SineToCosine()), "both")
    assert count == 2
    assert [value.op for value in result.values()] == ["input", "cos", "cos", "cos", "mul"]


def test_nothing_is_told_without_debug(capsys: pytest.CaptureFixture[str]) -> None:
    rewrite_graph(graph(), (DropSine(),), "drop")
    assert capsys.readouterr() == ("", "")


def test_debug_tells_rewrites_refusals_and_the_nearest_miss(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Never(DropSine):
        def check(self, match: Match) -> str | None:
            return f"{match['x']!r} must stay"

    monkeypatch.setenv("DSV3C_DEBUG", "2")
    rewrite_graph(graph(), (CosineOfRsqrt(), Never(), DropSine()), "try")
    assert capsys.readouterr().err.splitlines() == [
        "dsv3c: try: CosineOfRsqrt: no match; nearest: at <input x: f32[4]>: wanted rsqrt",
        "dsv3c: try: Never: no match; nearest: <cos : f32[4]> must stay",
        "dsv3c: try: DropSine: 2 rewrites",
    ]


def test_debug_says_when_no_root_was_found(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class NoRoot(DropSine):
        pattern: ClassVar[Pattern] = P.rsqrt(P.any("x"))

    monkeypatch.setenv("DSV3C_DEBUG", "2")
    rewrite_graph(graph(), (NoRoot(),), "try")
    assert "no value has the operation of the pattern's root" in capsys.readouterr().err
