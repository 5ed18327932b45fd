"""Two graphs on the same made-up values: what differs, by how much, and where."""

from __future__ import annotations

import numpy as np
import pytest

from dsv3c.compiler.core.ir import Graph
from dsv3c.compiler.driver.evaluation import MadeUp, differences, results
from dsv3c.compiler.errors import NotEvaluableError
from tests.passes.evaluation import graph

LINES = """
  %x: f32[T, 4] = input()
  %w: f32[3, 4] = param()
  %2: f32[T, 3] = linear(%x, %w)
  %3: f32[T, 3] = add(%2, %2)
  return y=%3, z=%x
"""
BEFORE = graph(LINES)


def changed(old: str, new: str) -> Graph:
    assert old in LINES
    return graph(LINES.replace(old, new))


def test_equal_graphs_do_not_differ() -> None:
    assert [(item.name, item.part) for item in differences(BEFORE, BEFORE)] == [("y", 0.0), ("z", 0.0)]


def test_a_difference_is_told_as_a_part_of_the_largest_value() -> None:
    y, z = differences(BEFORE, changed("add(%2, %2)", "mul(%2, %2)"))
    given = MadeUp.of(BEFORE)
    before = results(BEFORE, given)["y"]
    apart = np.abs(before - (before / 2) ** 2)
    assert y.part == pytest.approx(apart.max() / np.abs(before).max())
    assert apart[y.at] == apart.max()
    assert z.part == 0


def test_values_depend_on_the_name_of_a_leaf_and_the_seed_alone() -> None:
    renamed = graph(LINES.replace("%w", "%v"))
    assert differences(BEFORE, renamed)[0].part > 0
    assert differences(BEFORE, renamed, seed=1) != differences(BEFORE, renamed, seed=2)
    leaf = BEFORE.values()[0]
    np.testing.assert_array_equal(MadeUp.of(BEFORE)(leaf), MadeUp.of(changed("add(%2, %2)", "mul(%2, %2)"))(leaf))


def test_what_is_no_number_differs_unless_it_is_so_in_both() -> None:
    text = """
  %x: f32[T, 4] = input()
  %1: f32[T, 4] = sub(%x, %x)
  %2: f32[T, 4] = rsqrt(%1)
  %3: f32[T, 4] = sub(%2, %2)
  return y=%3
"""
    nothing = graph(text)
    with np.errstate(all="ignore"):
        assert differences(nothing, nothing)[0].part == 0
        assert differences(nothing, graph(text.replace("y=%3", "y=%1")))[0].part == np.inf


def test_a_cache_is_not_rounded() -> None:
    text = "  %cache.0: bf16[N, 8] = input()\n  return cache=%cache.0"
    assert results(graph(text), MadeUp())["cache"].dtype == np.float32


def test_the_small_step_crosses_a_page_of_any_size() -> None:
    text = """
  %positions: i32[T] = input()
  %sequence: i32[T] = input()
  %page_table: i32[S, P] = input()
  %3: i32[T] = token_slots(%positions, %sequence, %page_table) {"page_size": 4}
  return slots=%3
"""
    for size in (4, 16):
        own = graph(text.replace('"page_size": 4', f'"page_size": {size}'))
        expected = [size + 2, size + 3, 0, 1]
        assert results(own, MadeUp.of(own))["slots"].tolist() == expected


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("y=%3", "w=%3", "the results are y, z before, w, z after"),
        ("z=%x", "z=%w", r"z is \(4, 4\) before, \(3, 4\) after"),
        ("f32[3, 4]", "int4-g32[3, 4]", r"values of type int4-g32\[3, 4\] cannot be made up"),
        ("f32[3, 4]", "f32[3, Q]", r"values of type f32\[3, Q\] cannot be made up"),
        ("f32[3, 4]", "f32[3, 5]", "ValueError: "),
    ],
)
def test_what_cannot_be_compared_says_why(old: str, new: str, message: str) -> None:
    with pytest.raises(NotEvaluableError, match=message):
        differences(BEFORE, changed(old, new))
