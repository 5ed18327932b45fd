"""Weights in a format: rounded, and decoded again.

Codes stand for numbers of the format's grid, each times the scale of its group: `(code - zero) * scale` for integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.errors import Dsv3cError
from dsv3c.compiler.formats import coded, fp8, keeping
from dsv3c.compiler.formats.elements import NUMPY_DTYPES, as_float32
from dsv3c.compiler.formats.keeping import NO_LOSS, Loss
from dsv3c.compiler.formats.rounding import Rounded, Rounding, chunks
from dsv3c.compiler.formats.table import WeightFormat

Array = NDArray[Any]

# The bits of infinity in the element types of two bytes.
_INFINITY = {NUMPY_DTYPES["f16"]: 0x7C00, NUMPY_DTYPES["bf16"]: 0x7F80}
_SIGN = 0x8000


class OutOfRange(Dsv3cError):
    """A finite weight that its format would turn into infinity; who knows the weight's name says it."""

    message = "a weight is too large for {format}"


@dataclass(frozen=True)
class QTensor:
    """A weight of codes, unpacked: codes u8 [..., N, Kp], scale [..., N, KG], zero u8 [..., N, KG] or None.

    loss: of the codes that a checkpoint had it in.
    """

    codes: Array
    scale: Array
    zero: Array | None
    format: WeightFormat
    k: int  # logical K; codes of the padding k..Kp decode to 0
    loss: Loss = NO_LOSS

    def dequantize(self) -> Array:
        """float32 [..., N, K]."""
        *leading, rows, padded = self.codes.shape
        groups = self.scale.shape[-1]
        codes = self.codes.reshape(*leading, rows, groups, padded // groups)
        values = self.format.codes.values(codes, None if self.zero is None else self.zero[..., None])
        values *= self.scale[..., None].astype(np.float32)
        return values.reshape(*leading, rows, padded)[..., : self.k]


def to_plain(w: Array, format: WeightFormat) -> Array:
    """w[..., K], numbers or coded, in a format of plain floats. Raises OutOfRange where that is infinity."""
    assert format.element, f"{format} is no format of plain floats"
    if format.element == "f32":
        return as_float32(w)
    rows = w.reshape(-1, w.shape[-1])
    out = np.empty(rows.shape, NUMPY_DTYPES[format.element])
    for chunk in chunks(*rows.shape):
        with np.errstate(over="ignore"):
            out[chunk] = as_float32(rows[chunk])
        _require_finite(out[chunk], format)
    return out.reshape(w.shape)


def quantize(w: Array, format: WeightFormat, method: Rounding | None = None) -> QTensor:
    """Round w[..., N, K], float or coded, to a format of codes, by `method` or as its row says.

    Codes of a checkpoint are kept as far as the format holds them. Raises OutOfRange where a code with its scale would
    be infinity.
    """
    method = method or format.rounding
    assert method, f"{format} is no format of codes"
    with np.errstate(over="ignore", invalid="ignore"):
        (codes, scale, zero), loss = _rounded(w, format, method)
        # Codes that are kept were multiplied with their scales by the reader.
        check_range(scale, format, kept=format.keeps_fp8 and w.dtype == fp8.CODED)
    return QTensor(codes, scale, zero, format, w.shape[-1], loss)


def check_range(scale: Array, format: WeightFormat, *, kept: bool = False) -> None:
    """Raises OutOfRange for scales that are infinite, or make a code so. kept: all that codes stand for is known to be
    finite."""
    _require_finite(scale, format)
    if scale.dtype == np.float32 and not kept:
        with np.errstate(over="ignore"):
            _require_finite(scale * np.float32(format.largest), format)


def _rounded(w: Array, format: WeightFormat, method: Rounding) -> tuple[Rounded, Loss]:
    if not coded.is_coded(w.dtype) or (w.dtype == fp8.CODED and format.keeps_fp8):
        return method(w, format.codes, format.grouping), NO_LOSS
    *leading, n, k = w.shape
    rows = w.reshape(-1, k)
    kept = keeping.keep(rows, format)
    if kept is None:
        return method(as_float32(w), format.codes, format.grouping), Loss(rows=len(rows))
    anew = np.flatnonzero(~kept.fits)
    if anew.size:
        rounded = method(as_float32(rows[anew]), format.codes, format.grouping)
        for whole, some in zip(kept.rounded, rounded, strict=True):
            if whole is not None:
                whole[anew] = some
    shaped = (None if part is None else part.reshape(*leading, n, -1) for part in kept.rounded)
    return Rounded(*shaped), Loss(anew.size, kept.scales)  # type: ignore[arg-type]


def stored(w: Array, format: WeightFormat) -> QTensor | Array:
    """w[..., N, K], float or coded, as `format` has it. Raises OutOfRange."""
    return quantize(w, format) if format.has_codes else to_plain(w, format)


def _require_finite(values: Array, format: WeightFormat) -> None:
    """Raises OutOfRange for an infinity. Types of two bytes are looked at as integers, many times as fast."""
    if values.size == 0:
        return
    if values.dtype == NUMPY_DTYPES["e8m0"]:
        values = values.astype(np.float32)
    infinity = _INFINITY.get(values.dtype)
    if infinity is None:
        finite = bool(np.isfinite(values).all())
    else:
        finite = bool(values.view(np.int16).max() < infinity and values.view(np.uint16).max() < (infinity | _SIGN))
    if not finite:
        raise OutOfRange(format=format.name)
