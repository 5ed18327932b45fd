"""float8_e4m3fn with scales: numbers of eight bits (sign, four of exponent, three of fraction) in DeepSeek-V3's blocks.

Format of an element: "FP8 Formats for Deep Learning" (Micikevicius and others 2022, arXiv 2209.05433), E4M3: bias 7,
subnormals, no infinity, NaN where all other bits are set. Blocks of 128 x 128 share a float32 scale:
github.com/deepseek-ai/DeepSeek-V3, README_WEIGHTS.md.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BLOCK = 128  # rows and columns
LARGEST = 448.0

# An element that is still a code with its scale. Arrays of it go through reshapes, transpositions, slices and
# concatenations like any other, so a checkpoint's codes reach `keep` untouched.
CODED = np.dtype([("code", np.uint8), ("scale", np.float32)])

_VALUES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)


def decode(codes: Array) -> Array:
    """float32 of codes u8, same shape."""
    return np.take(_VALUES, codes)


def rounded(x: Array) -> Array:
    """Codes of float32 x, to nearest even; what is beyond the largest number becomes that."""
    clipped = np.clip(x, -LARGEST, LARGEST)
    codes: Array = clipped.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return codes


def values(coded: Array) -> Array:
    """float32 of an array of CODED."""
    found: Array = decode(coded["code"]) * coded["scale"]
    return found


def encode(w: Array) -> tuple[Array, Array]:
    """Round float32 w[N, K], K whole blocks: codes u8 [N, K], scale f32 [N, K/128], the same for rows of a block.

    The scale of a block is its largest magnitude / 448; a block of zeros has 0.
    """
    n, k = w.shape
    codes, scale = np.empty((n, k), np.uint8), np.empty((n, k // BLOCK), np.float32)
    for start in range(0, n, BLOCK):
        rows = slice(start, min(start + BLOCK, n))
        blocks = w[rows].reshape(-1, k // BLOCK, BLOCK)
        own = (np.abs(blocks).max(axis=(0, 2)) / np.float32(LARGEST)).astype(np.float32)
        divisor = np.where(own > 0, own, np.float32(np.inf))
        codes[rows] = rounded(blocks / divisor[:, None]).reshape(-1, k)
        scale[rows] = own
    return codes, scale


def keep(coded: Array) -> tuple[Array, Array]:
    """As `encode`, of CODED [N, K], K whole blocks: codes and scales as they are.

    Only where one group of 128 columns has more than one scale its row is rounded anew.
    """
    n, k = coded.shape
    codes = np.ascontiguousarray(coded["code"])
    groups = coded["scale"].reshape(n, k // BLOCK, BLOCK)
    scale = np.ascontiguousarray(groups[..., 0])
    mixed = (groups != scale[..., None]).any(axis=(1, 2))
    for row in np.flatnonzero(mixed):
        codes[row], scale[row] = (part[0] for part in encode(values(coded[row : row + 1])))
    return codes, scale
