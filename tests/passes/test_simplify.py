from __future__ import annotations

import pytest

from dsv3c.passes.simplify import Simplify
from tests.conftest import Golden
from tests.passes.evaluation import assert_same_meaning, changed, graph


def test_chains_of_views_are_joined_and_idle_operations_removed(golden: Golden) -> None:
    before = graph(
        """
  %x: f32[T, 48] = input()
  %1: f32[T, 6, 8] = reshape(%x) {"shape": ["T", 6, 8]}
  %2: f32[T, 2, 24] = reshape(%1) {"shape": ["T", 2, 24]}
  %3: f32[T, 2, 24] = reshape(%2) {"shape": ["T", 2, 24]}
  %4: f32[T, 2, 16] = slice(%3) {"axis": -1, "start": 4, "stop": 20}
  %5: f32[T, 2, 4] = slice(%4) {"axis": -1, "start": 1, "stop": 8, "step": 2}
  %6: f32[T, 2, 4] = slice(%5) {"axis": -1, "start": 0, "stop": 4}
  %7: f32[] = const() {"data": 1.0}
  %8: f32[T, 2, 4] = mul(%6, %7)
  %9: f32[T, 2, 4] = mul(%7, %8)
  %10: f32[T, 48] = reshape(%1) {"shape": ["T", 48]}
  return views=%9, round_trip=%10
"""
    )
    after, count = changed(Simplify(), before)
    assert count == 7
    golden.check(str(after))
    assert_same_meaning(before, after)


@pytest.mark.parametrize(
    "lines",
    [
        '%1: f32[T, 4] = slice(%x) {"axis": -1, "start": 0, "stop": 8, "step": 2}\n'
        '%2: f32[T, 2] = slice(%1) {"axis": -1, "start": 0, "stop": 2}\nreturn r=%2',
        '%1: f32[T, 2, 4] = reshape(%x) {"shape": ["T", 2, 4]}\n'
        '%2: f32[T, 1, 4] = slice(%1) {"axis": 1, "start": 1, "stop": 2}\n'
        '%3: f32[T, 1, 2] = slice(%2) {"axis": -1, "start": 0, "stop": 2}\nreturn r=%3',
        '%1: f32[] = const() {"data": 2.0}\n%2: f32[T, 8] = mul(%x, %1)\nreturn r=%2',
        '%1: f32[1, 1, 1] = const() {"data": [[[1.0]]]}\n%2: f32[1, T, 8] = mul(%x, %1)\nreturn r=%2',
        "%1: f32[T, 8] = mul(%x, %x)\nreturn r=%1",
        '%1: f32[T, 2, 4] = reshape(%x) {"shape": ["T", 2, 4]}\nreturn r=%1',
    ],
    ids=["slice-of-steps", "slices-of-two-axes", "factor-2", "factor-that-broadcasts", "square", "one-reshape"],
)
def test_what_does_something_stays(lines: str) -> None:
    before = graph(f"%x: f32[T, 8] = input()\n{lines}")
    after, count = changed(Simplify(), before)
    assert count == 0
    assert after == before


def test_running_it_again_changes_nothing() -> None:
    before = graph(
        """
  %x: f32[T, 8] = input()
  %1: f32[T, 2, 4] = reshape(%x) {"shape": ["T", 2, 4]}
  %2: f32[T, 8] = reshape(%1) {"shape": ["T", 8]}
  %3: f32[T, 6] = slice(%2) {"axis": -1, "start": 2, "stop": 8}
  %4: f32[T, 3] = slice(%3) {"axis": -1, "start": 0, "stop": 3}
  return r=%4
"""
    )
    once, _ = changed(Simplify(), before)
    assert changed(Simplify(), once) == (once, 0)
