"""Weights that are still the codes of a checkpoint, each element with what its code is to be multiplied by.

Arrays of such elements go through reshapes, transpositions, slices and concatenations like any other, so that a
checkpoint's codes reach `keeping` untouched. There are three kinds, each a dtype of its own:

    INTEGERS   (code - zero) * scale
    E2M1       the number of four bits `code` * 2^(scale - 127): "OCP Microscaling Formats (MX) Specification"
               version 1.0, MXFP4 and E8M0
    fp8.CODED  the number of eight bits `code` * scale
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.formats import fp8

Array = NDArray[Any]

INTEGERS = np.dtype([("code", np.uint8), ("zero", np.uint8), ("scale", np.float32)])
E2M1 = np.dtype([("code", np.uint8), ("scale", np.uint8)])
KINDS = (INTEGERS, E2M1, fp8.CODED)

_E2M1_VALUES = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
_POWERS = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float32)


def is_coded(dtype: np.dtype[Any]) -> bool:
    return dtype in KINDS


def values(coded: Array) -> Array:
    """float32 of an array of one of KINDS."""
    if coded.dtype == fp8.CODED:
        return fp8.values(coded)
    if coded.dtype == E2M1:
        found: Array = np.take(_E2M1_VALUES, coded["code"]) * power_of_two(coded["scale"])
        return found
    found = coded["code"].astype(np.float32)
    found -= coded["zero"]
    found *= coded["scale"]
    return found


def power_of_two(exponents: Array) -> Array:
    """float32 of E8M0 u8: 2^(exponent - 127), and 255 is not a number."""
    found: Array = np.take(_POWERS, exponents)
    return found
