from __future__ import annotations

import pytest

from dsv3c.passes.choose_all import ChooseAll
from tests.conftest import Golden
from tests.passes.evaluation import assert_same_meaning, changed, graph
from tests.passes.test_fuse_index import INDEXER

LONGEST = 40  # more than any context of a graph that is evaluated
TEXT = INDEXER.replace('{"k": 5}', f'{{"k": {LONGEST}}}')


def test_what_chooses_all_of_a_context_is_its_mask_and_keys_are_written(golden: Golden) -> None:
    before = graph(TEXT)
    after, count = changed(ChooseAll(LONGEST), before)
    assert count == 1
    assert [after.count(op) for op in ("context_mask", "scatter_rows", "top_k_mask", "matmul")] == [1, 1, 0, 0]
    golden.check(str(after))
    assert_same_meaning(before, after)


# What is replaced, and by what.
NEAR_MISSES = {
    "more-than-it-chooses": (f'{{"k": {LONGEST}}}', f'{{"k": {LONGEST - 1}}}'),
    "finite-mask": ('%38: f32[] = const() {"data": -Infinity}', '%38: f32[] = const() {"data": -1.0}'),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_stay(name: str) -> None:
    old, new = NEAR_MISSES[name]
    assert old in TEXT
    before = graph(TEXT.replace(old, new))
    after, count = changed(ChooseAll(LONGEST), before)
    assert (count, after) == (0, before)
