"""Which cooperative matrices kernels are loaded with, of those that devices report."""

from __future__ import annotations

import pytest

from dsv3c.runtime.devices.vulkan.matrices import Matrices, choose


@pytest.mark.parametrize(
    ("sizes", "width", "expected"),
    [
        ([(16, 16, 16), (16, 8, 16), (16, 8, 8)], 32, Matrices(16, 16, 16, 32, 32)),  # NVIDIA
        ([(16, 16, 16)], 64, Matrices(16, 16, 16, 32, 64)),  # AMD
        ([(8, 16, 16)], 16, Matrices(8, 16, 16, 16, 32)),  # Intel
        ([(8, 16, 16)], 32, Matrices(8, 16, 16, 32, 32)),
        ([(8, 8, 8)], 8, Matrices(8, 8, 8, 16, 16)),  # lavapipe
        ([(16, 16, 16)], 128, Matrices(16, 16, 16, 64, 64)),
    ],
)
def test_the_largest_is_taken_and_the_tile_shared_out_evenly(
    sizes: list[tuple[int, int, int]], width: int, expected: Matrices
) -> None:
    found = choose(sizes, width)
    assert found == expected
    assert found.rows * found.columns * (128 // width) == 64 * 64


@pytest.mark.parametrize("size", [(32, 32, 16), (16, 16, 64), (16, 12, 16), (12, 16, 16), (16, 128, 16)])
def test_sizes_that_do_not_divide_the_tile_are_passed_over(size: tuple[int, int, int]) -> None:
    assert choose([size], 32) is None
    assert choose([size, (8, 8, 16)], 32) == Matrices(8, 8, 16, 32, 32)


def test_a_subgroup_with_less_than_a_matrix_of_the_tile_has_none() -> None:
    assert choose([(16, 16, 16)], 4) is None
    assert choose([], 32) is None
