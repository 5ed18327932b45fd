from __future__ import annotations

import pytest

from dsv3c.passes.fuse_swiglu import FuseSwiglu
from tests.passes.evaluation import assert_same_meaning, changed, graph

MLP = """
  %x: f32[T, 8] = input()
  %gate: f32[6, 8] = param()
  %2: f32[T, 6] = linear(%x, %gate)
  %3: f32[T, 6] = sigmoid(%2)
  %4: f32[T, 6] = mul(%2, %3)
  %up: f32[6, 8] = param()
  %6: f32[T, 6] = linear(%x, %up)
  %7: f32[T, 6] = mul(%4, %6)
  return r=%7
"""
FUSED = """
  %x: f32[T, 8] = input()
  %gate: f32[6, 8] = param()
  %up: f32[6, 8] = param()
  %3: f32[12, 8] = concat(%gate, %up) {"axis": 0}
  %4: f32[T, 12] = linear(%x, %3)
  %5: f32[T, 6] = swiglu(%4)
  return r=%5
"""


def test_both_projections_become_one_product() -> None:
    after, count = changed(FuseSwiglu(), graph(MLP))
    assert count == 1
    assert after == graph(FUSED)
    assert_same_meaning(graph(MLP), after)


@pytest.mark.parametrize(("before", "after"), [("mul(%4, %6)", "mul(%6, %4)"), ("mul(%2, %3)", "mul(%3, %2)")])
def test_operands_match_in_either_order(before: str, after: str) -> None:
    assert changed(FuseSwiglu(), graph(MLP.replace(before, after)))[0] == graph(FUSED)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("%6: f32[T, 6] = linear(%x, %up)", "%y: f32[T, 8] = input()\n%6: f32[T, 6] = linear(%y, %up)"),
        ("%3: f32[T, 6] = sigmoid(%2)", "%3: f32[T, 6] = cos(%2)"),
        ("%4: f32[T, 6] = mul(%2, %3)", "%4: f32[T, 6] = mul(%3, %3)"),
        ("%up: f32[6, 8] = param()\n  %6: f32[T, 6]", "%up: f32[1, 8] = param()\n  %6: f32[T, 1]"),
    ],
    ids=["two-inputs", "no-silu", "square-of-sigmoid", "another-width"],
)
def test_near_misses_stay(before: str, after: str) -> None:
    assert before in MLP
    text = graph(MLP.replace(before, after))
    assert FuseSwiglu().run(text) == (text, 0)


def test_a_refusal_says_why(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV3C_DEBUG", "2")
    narrow = "%up: f32[1, 8] = param()\n  %6: f32[T, 1]"
    FuseSwiglu().run(graph(MLP.replace("%up: f32[6, 8] = param()\n  %6: f32[T, 6]", narrow)))
    assert "<param gate: f32[6, 8]> and <param up: f32[1, 8]> differ in shape" in capsys.readouterr().err
