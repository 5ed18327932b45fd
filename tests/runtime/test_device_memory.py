"""Memory of a GPU: what is said when it is short, and copies that must not overlap themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3c.runtime.device_memory import Needs, disjoint
from dsv3c.runtime.errors import DeviceMemoryShort

NEEDS = Needs(weights=70, cache=20, activations=9, inputs=1)


def test_too_little_memory_is_told_by_part() -> None:
    with pytest.raises(DeviceMemoryShort, match="70 for weights, 20 for cache, 9 for activations, 1 for inputs"):
        NEEDS.require("a card", 99)


@pytest.mark.parametrize("available", [100, None])
def test_enough_memory_or_an_unknown_amount_is_accepted(available: int | None) -> None:
    NEEDS.require("a card", available)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_pieces_copy_the_whole_as_if_at_once_and_never_onto_themselves(source: int, target: int, count: int) -> None:
    memory = np.arange(100)
    expected = memory.copy()
    expected[target : target + count] = memory[source : source + count]
    for start, size in disjoint(source, target, count):
        assert 0 < size <= abs(target - source)
        memory[target + start : target + start + size] = memory[source + start : source + start + size].copy()
    np.testing.assert_array_equal(memory, expected)
