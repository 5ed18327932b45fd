from __future__ import annotations

import pytest

from dsv3c.compiler.core.ir import Graph
from dsv3c.passes.fuse_rms_norm import FuseRmsNorm
from tests.passes.evaluation import assert_same_meaning, changed, graph

NORM = """
  %x: f32[T, 8] = input()
  %1: f32[T, 8] = mul(%x, %x)
  %2: f32[T, 1] = mean(%1) {"axis": -1, "keepdims": true}
  %3: f32[] = const() {"data": 0.001}
  %4: f32[T, 1] = add(%2, %3)
  %5: f32[T, 1] = rsqrt(%4)
  %6: f32[T, 8] = mul(%x, %5)
  %w: f32[8] = param()
  %8: f32[T, 8] = mul(%6, %w)
  return r=%8
"""
FUSED = """
  %x: f32[T, 8] = input()
  %w: f32[8] = param()
  %2: f32[T, 8] = rms_norm(%x, %w) {"eps": 0.001}
  return r=%2
"""


def test_the_primitives_become_one_operation() -> None:
    after, count = changed(FuseRmsNorm(), graph(NORM))
    assert count == 1
    assert after == graph(FUSED)
    assert_same_meaning(graph(NORM), after)


@pytest.mark.parametrize(
    ("before", "after"),
    [("mul(%6, %w)", "mul(%w, %6)"), ("mul(%x, %5)", "mul(%5, %x)"), ("add(%2, %3)", "add(%3, %2)")],
)
def test_operands_match_in_either_order(before: str, after: str) -> None:
    assert changed(FuseRmsNorm(), graph(NORM.replace(before, after)))[0] == graph(FUSED)


def test_two_norms_of_one_value_are_both_fused() -> None:
    twice = NORM.replace("return r=%8", "%v: f32[8] = param()\n%10: f32[T, 8] = mul(%6, %v)\nreturn r=%8, s=%10")
    after, count = changed(FuseRmsNorm(), graph(twice))
    assert count == 2
    assert after.count("rms_norm") == 2
    assert_same_meaning(graph(twice), after)


def unchanged(text: str) -> None:
    before: Graph = graph(text)
    assert changed(FuseRmsNorm(), before) == (before, 0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("%1: f32[T, 8] = mul(%x, %x)", "%y: f32[T, 8] = input()\n%1: f32[T, 8] = mul(%x, %y)"),
        ("mul(%x, %5)", "div(%x, %5)"),
        ("%w: f32[8] = param()", "%w: f32[1, 8] = param()"),
        ("%w: f32[8] = param()", "%w: f32[T, 8] = input()"),
        ('%3: f32[] = const() {"data": 0.001}', '%3: f32[1] = const() {"data": [0.001]}'),
        ("= mean(", "= sum("),
    ],
    ids=["product-of-two", "division", "weight-of-rank-2", "weight-a-token", "vector-eps", "sum"],
)
def test_near_misses_stay(before: str, after: str) -> None:
    assert before in NORM
    unchanged(NORM.replace(before, after))


def test_the_mean_over_another_axis_stays() -> None:
    text = NORM.replace("[T, 8]", "[4, 8]").replace("[T, 1]", "[1, 8]").replace('"axis": -1', '"axis": 0')
    unchanged(text)


def test_a_refusal_says_why(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV3C_DEBUG", "2")
    unchanged(NORM.replace("%w: f32[8] = param()", "%w: f32[1, 8] = param()"))
    assert "<param w: f32[1, 8]> does not scale the last axis of <input x: f32[T, 8]>" in capsys.readouterr().err
