"""Memory of a GPU: what is said when it is short, and copies that must not overlap themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3c.runtime.artifact.plan import Bounds, Buffer, Plan
from dsv3c.runtime.devices.device_memory import MOST_ELEMENTS, Needs, disjoint, require_countable
from dsv3c.runtime.errors import DeviceLacks, DeviceMemoryShort

NEEDS = Needs(weights=70, cache=20, activations=9, inputs=1)


def test_too_little_memory_is_told_by_part() -> None:
    with pytest.raises(DeviceMemoryShort, match="70 for weights, 20 for cache, 9 for activations, 1 for inputs"):
        NEEDS.require("a card", 99)


@pytest.mark.parametrize("available", [100, None])
def test_enough_memory_or_an_unknown_amount_is_accepted(available: int | None) -> None:
    NEEDS.require("a card", available)


def plan_with(elements: int) -> Plan:
    """A plan with a buffer of so many elements, and a cache with rows of 64."""
    buffers = Buffer("scores", "arena", "float32", elements), Buffer("cache.0", "cache", "bfloat16", 0, width=64)
    return Plan(Bounds(1, 1, 1, 1), 16, 4 * elements, buffers, {})


def test_a_buffer_with_more_elements_than_kernels_count_is_named_with_what_to_do() -> None:
    require_countable("a card", plan_with(MOST_ELEMENTS), 100)
    with pytest.raises(DeviceLacks, match=r"scores would have 2147483648 elements(.|\n)*lower --max-tokens"):
        require_countable("a card", plan_with(MOST_ELEMENTS + 1), 100)


def test_a_cache_with_more_elements_than_kernels_count_is_refused() -> None:
    require_countable("a card", plan_with(1), 2**25 - 1)
    with pytest.raises(
        DeviceLacks, match=r"the buffer cache.0 would have 2147483648 elements(.|\n)*lower context or max_batch"
    ):
        require_countable("a card", plan_with(1), 2**25)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_pieces_copy_the_whole_as_if_at_once_and_never_onto_themselves(source: int, target: int, count: int) -> None:
    memory = np.arange(100)
    expected = memory.copy()
    expected[target : target + count] = memory[source : source + count]
    for start, size in disjoint(source, target, count):
        assert 0 < size <= abs(target - source)
        memory[target + start : target + start + size] = memory[source + start : source + start + size].copy()
    np.testing.assert_array_equal(memory, expected)
