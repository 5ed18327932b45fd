"""Planes against their definition, bit by bit: byte j of field f of a word has the bits of code 4f + j."""

from __future__ import annotations

import numpy as np
import pytest

from dsv3c.compiler.formats.packings import Planes

WIDTHS = [(8,), (4,), (2,), (4, 1), (4, 2), (2, 1)]


@pytest.mark.parametrize("widths", WIDTHS)
def test_every_bit_of_a_code_lies_where_its_plane_says(widths: tuple[int, ...]) -> None:
    planes, bits = Planes(widths), sum(widths)
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 64), np.uint8)
    words = planes.pack(codes)
    assert words.shape == (3, 64 * bits // 32)
    units = words.reshape(3, -1, planes.words)
    for k in range(64):
        unit, at = divmod(k, planes.columns)
        first = below = 0
        for width in widths:
            word, within = divmod(at, 32 // width)
            shift = 8 * (within % 4) + width * (within // 4)
            stored = units[:, unit, first + word] >> np.uint32(shift) & np.uint32((1 << width) - 1)
            np.testing.assert_array_equal(stored, codes[:, k] >> below & ((1 << width) - 1))
            first, below = first + planes.columns * width // 32, below + width


@pytest.mark.parametrize("widths", WIDTHS)
def test_unpacking_is_the_inverse(widths: tuple[int, ...]) -> None:
    codes = np.random.default_rng(7).integers(0, 1 << sum(widths), (2, 5, 96), np.uint8)
    np.testing.assert_array_equal(Planes(widths).unpack(Planes(widths).pack(codes)), codes)
