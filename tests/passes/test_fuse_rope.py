from __future__ import annotations

import pytest

from dsv3c.passes.fuse_rope import FuseRope
from tests.conftest import Golden
from tests.passes.evaluation import assert_same_meaning, changed, graph

ANGLES = """
  %positions: i32[T] = input()
  %1: f32[T] = cast(%positions) {"dtype": "f32"}
  %2: f32[T, 1] = reshape(%1) {"shape": ["T", 1]}
  %3: f32[2] = const() {"data": [1.0, 0.1]}
  %4: f32[T, 2] = mul(%2, %3)
  %5: f32[T, 2] = cos(%4)
  %6: f32[T, 2] = sin(%4)
"""
SCALED = """
  %7: f32[] = const() {"data": 1.5}
  %8: f32[T, 2] = mul(%5, %7)
  %9: f32[T, 2] = mul(%6, %7)
  %10: f32[T, 1, 2] = reshape(%8) {"shape": ["T", 1, 2]}
  %11: f32[T, 1, 2] = reshape(%9) {"shape": ["T", 1, 2]}
"""
PLAIN = """
  %10: f32[T, 1, 2] = reshape(%5) {"shape": ["T", 1, 2]}
  %11: f32[T, 1, 2] = reshape(%6) {"shape": ["T", 1, 2]}
"""
PAIRS = """
  %x: f32[T, 3, 4] = input()
  %13: f32[T, 3, 2] = slice(%x) {"axis": -1, "start": 0, "stop": 4, "step": 2}
  %14: f32[T, 3, 2] = slice(%x) {"axis": -1, "start": 1, "stop": 4, "step": 2}
"""
HALVES = """
  %x: f32[T, 3, 4] = input()
  %13: f32[T, 3, 2] = slice(%x) {"axis": -1, "start": 0, "stop": 2}
  %14: f32[T, 3, 2] = slice(%x) {"axis": -1, "start": 2, "stop": 4}
"""
TURN = """
  %15: f32[T, 3, 2] = mul(%13, %10)
  %16: f32[T, 3, 2] = mul(%14, %11)
  %17: f32[T, 3, 2] = sub(%15, %16)
  %18: f32[T, 3, 2] = mul(%14, %10)
  %19: f32[T, 3, 2] = mul(%13, %11)
  %20: f32[T, 3, 2] = add(%18, %19)
  %21: f32[T, 3, 4] = concat(%17, %20) {"axis": -1}
  return r=%21
"""


def test_rotation_becomes_one_operation_on_a_table(golden: Golden) -> None:
    before = graph(ANGLES + SCALED + PAIRS + TURN)
    after, count = changed(FuseRope(), before)
    assert count == 1
    golden.check(str(after))


@pytest.mark.parametrize("pairs", [PAIRS, HALVES], ids=["interleaved", "halves"])
@pytest.mark.parametrize("scale", [SCALED, PLAIN], ids=["scaled", "plain"])
def test_the_meaning_stays(pairs: str, scale: str) -> None:
    before = graph(ANGLES + scale + pairs + TURN)
    after, count = changed(FuseRope(), before)
    assert count == 1
    rope = after.result("r")
    assert rope.attrs == {"interleave": pairs == PAIRS}
    assert rope.inputs[1].attrs == {"scale": 1.5 if scale == SCALED else 1.0}
    assert_same_meaning(before, after)


@pytest.mark.parametrize("pairs", [PAIRS, HALVES], ids=["interleaved", "halves"])
def test_columns_within_a_wider_row_are_sliced(pairs: str) -> None:
    wide = pairs.replace("[T, 3, 4]", "[T, 3, 9]")
    for column in (4, 2, 1, 0):
        wide = wide.replace(f'"start": {column},', f'"start": {column + 3},').replace(
            f'"stop": {column}', f'"stop": {column + 3}'
        )
    before = graph(ANGLES + PLAIN + wide + TURN)
    after, count = changed(FuseRope(), before)
    assert count == 1
    assert after.result("r").inputs[0].attrs == {"axis": -1, "start": 3, "stop": 7}
    assert_same_meaning(before, after)


def test_rotations_of_one_step_share_their_table() -> None:
    other = (PAIRS + TURN).replace("%x:", "%y:").replace("(%x)", "(%y)").replace("return r", "return s")
    for number in range(21, 12, -1):
        other = other.replace(f"%{number}", f"%{number + 20}")
    both = (ANGLES + PLAIN + PAIRS + TURN).replace("return r=%21", "") + other.replace("return", "return r=%21,")
    after, count = changed(FuseRope(), graph(both))
    assert count == 2
    assert after.count("rope_table") == 1
    assert_same_meaning(graph(both), after)


OF_FIRST = """
  %x: f32[T, 3, 10] = input()
  %table: f32[T, 4] = input()
  %2: f32[T, 3, 4] = slice(%x) {"axis": -1, "start": 0, "stop": 4}
  %3: f32[T, 3, 4] = rope(%2, %table) {"interleave": true}
  %4: f32[T, 3, 6] = slice(%x) {"axis": -1, "start": 4, "stop": 10}
  %5: f32[T, 3, 10] = concat(%3, %4) {"axis": -1}
  return r=%5
"""


def test_columns_that_are_not_rotated_join_those_that_are() -> None:
    before = graph(OF_FIRST)
    after, count = changed(FuseRope(), before)
    assert (count, after.result("r").op, after.count("concat")) == (1, "rope", 0)
    assert_same_meaning(before, after)


def test_columns_in_another_order_stay_apart() -> None:
    before = graph(OF_FIRST.replace("concat(%3, %4)", "concat(%4, %3)"))
    assert changed(FuseRope(), before) == (before, 0)
    gap = OF_FIRST.replace(
        '%4: f32[T, 3, 6] = slice(%x) {"axis": -1, "start": 4', '%4: f32[T, 3, 5] = slice(%x) {"axis": -1, "start": 5'
    )
    before = graph(gap.replace("%5: f32[T, 3, 10]", "%5: f32[T, 3, 9]"))
    assert changed(FuseRope(), before) == (before, 0)


NEAR_MISSES = {
    "gap": (HALVES, '"start": 2, "stop": 4', '"start": 1, "stop": 3'),
    "swapped": (PAIRS, '"start": 0, "stop": 4', '"start": 2, "stop": 6'),
    "scales-differ": (SCALED, "%9: f32[T, 2] = mul(%6, %7)",
                      "%22: f32[] = const() {\"data\": 2.0}\n%9: f32[T, 2] = mul(%6, %22)"),
    "one-scale": (SCALED, "reshape(%9)", "reshape(%6)"),
    "other-sign": (TURN, "add(%18, %19)", "sub(%18, %19)"),
    "other-axis": (TURN, 'f32[T, 3, 4] = concat(%17, %20) {"axis": -1}', 'f32[T, 6, 2] = concat(%17, %20) {"axis": 1}'),
    "cos-twice": (TURN, "mul(%13, %11)", "mul(%13, %10)"),
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_stay(name: str) -> None:
    part, old, new = NEAR_MISSES[name]
    scale = SCALED if part == SCALED else PLAIN
    pairs = HALVES if part == HALVES else PAIRS
    text = ANGLES + scale + pairs.replace("[T, 3, 4]", "[T, 3, 6]") + TURN
    assert old in text
    before = graph(text.replace(old, new, 1))
    assert changed(FuseRope(), before) == (before, 0)


def test_one_row_of_angles_for_all_tokens_stays() -> None:
    """Angles along the heads broadcast as well where there are as many heads as tokens."""
    text = (ANGLES + PLAIN + PAIRS + TURN).replace("T, 3,", "T, T,").replace('["T", 1, 2]', '[1, "T", 2]')
    before = graph(text.replace("[T, 1, 2]", "[1, T, 2]"))
    assert changed(FuseRope(), before) == (before, 0)


def test_a_refusal_says_why(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV3C_DEBUG", "2")
    FuseRope().run(graph(ANGLES + PLAIN + HALVES.replace('"start": 2, "stop": 4', '"start": 1, "stop": 3') + TURN))
    assert "are neither the halves nor the even and odd columns" in capsys.readouterr().err
