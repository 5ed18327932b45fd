"""Weights that are looked up: each row decodes alone."""

from __future__ import annotations

import numpy as np
import pytest

from dsv3c.compiler.formats import rows
from dsv3c.compiler.formats.quant import quantize
from dsv3c.compiler.formats.table import WeightFormat


def test_the_formats_of_an_embedding() -> None:
    assert rows.format_names() == ("float32", "float16", "bfloat16", "int8")


def test_codes_are_signed_and_a_scale_stands_for_each_row() -> None:
    format = WeightFormat.parse("int8")
    w = np.random.default_rng(0).standard_normal((5, 33)).astype(np.float32)
    parts = rows.pack(quantize(w, format))
    types = rows.component_types(format, (), 5, 33)
    assert {role: part.shape for role, part in parts.items()} == {role: shape for role, (_, shape) in types.items()}
    scale = np.abs(w).max(axis=1) / np.float32(127)
    np.testing.assert_array_equal(parts["scale"], scale)
    np.testing.assert_array_equal(parts["data"], np.rint(w / scale[:, None]).astype(np.int8))


def test_a_format_with_groups_has_no_such_rows() -> None:
    with pytest.raises(AssertionError, match="does not decode alone"):
        rows.pack(quantize(np.zeros((2, 32), np.float32), WeightFormat.parse("int8-g32")))
