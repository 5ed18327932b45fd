"""The scales of MXFP4: float4_e2m1fn in groups of 32 with a power of two in common.

Source: OCP Microscaling Formats (MX) v1.0, 5.2, 5.4.1 and 6.3: a scale e8m0 is 2^(code - 127), and 255 is NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

GROUP = 32
NAN = 255  # the scale that is no number
EXPONENT = 2  # of the largest element, 6


def scale_codes(largest: Array) -> Array:
    """The scales u8 of groups, by their largest magnitudes float32: floor(log2(largest)) less that of the largest code.

    A group of zeros has the least. What an infinity is among has NaN.
    """
    exponents = (largest.view(np.uint32) >> np.uint32(23)).astype(np.int32)  # float32 has the bias of e8m0
    codes = np.where(exponents == NAN, NAN, np.maximum(exponents - EXPONENT, 0))
    return codes.astype(np.uint8)
