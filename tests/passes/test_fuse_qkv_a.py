from __future__ import annotations

import pytest

from dsv3c.passes.fuse_qkv_a import FuseQkvA
from tests.conftest import Golden
from tests.passes.evaluation import assert_same_meaning, changed, graph

PROJECTIONS = """
  %x: f32[T, 8] = input()
  %norm: f32[8] = param()
  %2: f32[T, 8] = rms_norm(%x, %norm) {"eps": 0.001}
  %wq: f32[6, 8] = param()
  %4: f32[T, 6] = linear(%2, %wq)
  %5: f32[T, 6] = sin(%4)
  %wkv: f32[5, 8] = param()
  %7: f32[T, 5] = linear(%2, %wkv)
  %8: f32[T, 3] = slice(%7) {"axis": -1, "start": 0, "stop": 3}
  %9: f32[T, 2] = slice(%7) {"axis": -1, "start": 3, "stop": 5}
  return q=%5, latent=%8, key=%9
"""


def test_both_projections_become_one_product(golden: Golden) -> None:
    before = graph(PROJECTIONS)
    after, count = changed(FuseQkvA(), before)
    assert count == 1
    golden.check(str(after))
    assert_same_meaning(before, after)


def test_the_order_in_the_text_does_not_matter() -> None:
    """Which one is the query is told by its readers, and the query comes first."""
    turned = PROJECTIONS.replace("q=%5, latent=%8, key=%9", "latent=%8, key=%9, q=%5")
    after, count = changed(FuseQkvA(), graph(turned))
    assert count == 1
    joined = after.result("latent").inputs[0].inputs[0]
    assert [source.attrs["name"] for source in joined.inputs[1].inputs] == ["wq", "wkv"]
    assert_same_meaning(graph(turned), after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("%7: f32[T, 5] = linear(%2, %wkv)", "%7: f32[T, 5] = linear(%x, %wkv)"),
        ("return q=%5", "%w3: f32[4, 8] = param()\n%11: f32[T, 4] = linear(%2, %w3)\nreturn third=%11, q=%5"),
        ("%5: f32[T, 6] = sin(%4)", '%5: f32[T, 2] = slice(%4) {"axis": -1, "start": 0, "stop": 2}'),
        ('%9: f32[T, 2] = slice(%7) {"axis": -1, "start": 3, "stop": 5}', "%9: f32[T, 5] = sin(%7)"),
    ],
    ids=["two-inputs", "three-projections", "both-sliced", "none-only-sliced"],
)
def test_near_misses_stay(before: str, after: str) -> None:
    assert before in PROJECTIONS
    text = graph(PROJECTIONS.replace(before, after))
    assert changed(FuseQkvA(), text) == (text, 0)


def test_the_query_among_more_projections_is_the_one_that_is_normed() -> None:
    text = PROJECTIONS.replace(
        "return", "%w3: f32[4, 8] = param()\n%11: f32[T, 4] = linear(%2, %w3)\nreturn third=%11,"
    ).replace("%5: f32[T, 6] = sin(%4)", '%w5: f32[6] = param()\n%5: f32[T, 6] = rms_norm(%4, %w5) {"eps": 0.001}')
    after, count = changed(FuseQkvA(), graph(text))
    assert count == 1
    joined = after.result("latent").inputs[0].inputs[0]
    assert [source.attrs["name"] for source in joined.inputs[1].inputs] == ["wq", "wkv"]
    assert after.result("third").op == "linear"
    assert_same_meaning(graph(text), after)


def test_stacked_weights_are_not_joined() -> None:
    text = PROJECTIONS.replace("%wq: f32[6, 8]", "%wq: f32[2, 6, 8]")
    text = text.replace("%4: f32[T, 6]", "%4: f32[2, T, 6]").replace("%5: f32[T, 6]", "%5: f32[2, T, 6]")
    assert changed(FuseQkvA(), graph(text)) == (graph(text), 0)
