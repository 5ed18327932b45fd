"""Activations as integer products take them: rounded to int8, row by row, in groups along K."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.formats.grouping import padded_k
from dsv3c.compiler.formats.rounding import padded_columns

Array = NDArray[Any]


def quantize_rows(x: Array, group: int) -> tuple[Array, Array, Array]:
    """Round activations x[..., K] to int8 in groups of `group`.

    Returns data i8 [..., Kp] (0 in the padding), scale f32 [..., Kp/group] = amax/127, and sum i32 [..., Kp/group],
    the sum of the codes of a group. The codes are rint(x * (127 / amax)), all in float32: kernels reproduce them
    exactly.
    """
    *leading, k = x.shape
    padded = padded_k(k, group)
    values = padded_columns(x.reshape(-1, k).astype(np.float32), padded).reshape(-1, padded // group, group)
    amax = np.abs(values).max(axis=-1)
    inverse = np.float32(127) / np.where(amax > 0, amax, np.float32(1))
    data = np.rint(values * inverse[..., None]).astype(np.int8)
    scale = (amax * np.float32(1 / 127)).astype(np.float32)
    total = data.sum(axis=-1, dtype=np.int32)
    shape = (*leading, padded // group)
    return data.reshape(*leading, padded), scale.reshape(shape), total.reshape(shape)
