from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3c.runtime.engine.speculation.ngram import LONGEST, SHORTEST, lookup


@pytest.mark.parametrize(
    ("tokens", "count", "expected"),
    [
        ([1, 2, 3, 4, 9, 1, 2, 3], 2, [4, 9]),
        ([1, 2, 3, 4, 9, 1, 2, 3], 8, [4, 9, 1, 2, 3]),
        ([1, 2, 7, 1, 2, 8, 1, 2], 1, [8]),  # the latest place
        ([5, 1, 2, 7, 6, 1, 2, 8, 5, 1, 2], 1, [7]),  # of the longest n-gram
        ([1, 2, 3], 4, []),
        ([3, 3, 3, 3], 2, [3]),
        ([1, 5, 2, 5], 2, []),  # a single token says little
        ([7], 3, []),
        ([], 3, []),
    ],
)
def test_what_followed_before_is_proposed(tokens: list[int], count: int, expected: list[int]) -> None:
    assert lookup(np.array(tokens, np.int32), count).tolist() == expected


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 6))
def test_equals_a_plain_search(tokens: list[int], count: int) -> None:
    expected: list[int] = []
    for size in range(min(LONGEST, len(tokens) - 1), SHORTEST - 1, -1):
        places = [at for at in range(len(tokens) - size) if tokens[at : at + size] == tokens[-size:]]
        if places:
            expected = tokens[places[-1] + size :][:count]
            break
    assert lookup(np.array(tokens, np.int32), count).tolist() == expected
