"""Weight formats and the arithmetic of rounding weights and activations to integers.

A format is a `QuantSpec`; its name is what the user types (`int4-g32-asym`). Integer weights decode as
`(code - zero) * scale` with unsigned codes, one scale per output channel or per group of `group` weights along K, the
last axis. Activations are rounded row by row in groups of `QuantSpec.act_group`, so that an integer dot product of one
group has one weight scale and one activation scale.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.errors import Dsv3cError
from dsv3c.compiler.formats import fp8

Array = NDArray[Any]

GROUPS = (32, 64, 128)
ACT_GROUP_PER_CHANNEL = 128  # activation group of formats whose weights have one scale a channel

# IR name of an element type -> numpy type. bfloat16 comes from ml_dtypes.
NUMPY_DTYPES: dict[str, Any] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "i32": np.dtype(np.int32),
    "i8": np.dtype(np.int8),
    "u8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}

_FLOAT_FORMATS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_FLOAT_NAMES = {element: name for name, element in _FLOAT_FORMATS.items()}
_FLOAT_BITS = {"f32": 32, "f16": 16, "bf16": 16}
_INT_FORMAT = re.compile(r"int(?P<bits>4|8)(-g(?P<group>\d+))?(?P<asym>-asym)?")
_CHUNK_ELEMENTS = 1 << 16  # rows are rounded in chunks of this size: 256 kB of float32 stays in the L2 cache


# The bits of infinity in the element types of two bytes.
_INFINITY = {NUMPY_DTYPES["f16"]: 0x7C00, NUMPY_DTYPES["bf16"]: 0x7F80}
_SIGN = 0x8000
_FINE_SCALE = 2.0**-17  # from here on float16, whose steps are 2^-24 at least, takes less than 1/256 from a scale


class UnknownWeightFormat(Dsv3cError):
    message = "unknown weight format {text!r}"
    hint = "use float32, float16, bfloat16, fp8, int8, int8-gG, int4-gG or int4-gG-asym with G one of 32, 64, 128"


class OutOfRange(Dsv3cError):
    """A finite weight that its format would turn into infinity; who knows the weight's name says it."""

    message = "a weight is too large for {format}"


@dataclass(frozen=True)
class QuantSpec:
    """One weight format.

    bits: 32, 16, 8 or 4 per weight. group: weights per scale along K, 0 for one scale per output channel (and for
    floats). symmetric: the zero point is the middle code. element: IR dtype of the stored element, "u8" for codes.
    code: what a code is, a whole number or "e4m3", whose value is code * scale.
    """

    bits: int
    group: int = 0
    symmetric: bool = True
    element: str = "u8"
    code: str = "integer"

    @classmethod
    def parse(cls, text: str) -> QuantSpec:
        """The format named `text`, e.g. "bfloat16", "int8", "int4-g32-asym"."""
        if text in _FLOAT_FORMATS:
            return cls.floating(_FLOAT_FORMATS[text])
        if text == "fp8":
            return cls(8, fp8.BLOCK, code="e4m3")
        match = _INT_FORMAT.fullmatch(text)
        if match is None:
            raise UnknownWeightFormat(text=text)
        bits, group, symmetric = int(match["bits"]), int(match["group"] or 0), match["asym"] is None
        per_channel_int8 = bits == 8 and group == 0
        if not (per_channel_int8 or group in GROUPS) or (bits == 8 and not symmetric):
            raise UnknownWeightFormat(text=text)
        return cls(bits, group, symmetric)

    @classmethod
    def floating(cls, element: str) -> QuantSpec:
        """The unquantised format of IR dtype `element` (f32, f16 or bf16)."""
        return cls(_FLOAT_BITS[element], element=element)

    @property
    def name(self) -> str:
        if self.is_float:
            return _FLOAT_NAMES[self.element]
        if self.is_fp8:
            return "fp8"
        group = f"-g{self.group}" if self.group else ""
        return f"int{self.bits}{group}{'' if self.symmetric else '-asym'}"

    def __str__(self) -> str:
        return self.name

    @property
    def is_float(self) -> bool:
        return self.element != "u8"

    @property
    def is_fp8(self) -> bool:
        return self.code == "e4m3"

    @property
    def act_group(self) -> int:
        """Activation group A of the integer formats; 0 for floats, which take float32 activations."""
        if self.is_float:
            return 0
        return self.group or ACT_GROUP_PER_CHANNEL

    @property
    def scale_dtype(self) -> str:
        return "f16" if self.group and not self.is_fp8 else "f32"

    @property
    def zero_point(self) -> int:
        """The code that decodes to 0 in a symmetric format."""
        return 0 if self.is_fp8 else 1 << (self.bits - 1)

    @property
    def largest_code(self) -> float:
        """The largest magnitude that a code stands for, before its scale."""
        return fp8.LARGEST if self.is_fp8 else float((1 << (self.bits - 1)) - (self.bits == 8))

    def padded_k(self, k: int) -> int:
        """K rounded up to whole activation groups (integers) or pairs (bf16)."""
        if self.is_float:
            return k + k % 2 if self.element == "bf16" else k
        return -(-k // self.act_group) * self.act_group

    def scale_groups(self, k: int) -> int:
        """KG, the number of scales of one output channel."""
        return self.padded_k(k) // self.group if self.group else 1

    def bits_per_weight(self, k: int = 1024) -> float:
        """Stored bits a weight, scales and zero points included, for an inner size of `k`."""
        if self.is_float:
            return float(self.bits)
        scale_bits = 16 if self.scale_dtype == "f16" else 32
        zero_bits = 0 if self.symmetric else 8
        return self.bits + (scale_bits + zero_bits) * self.scale_groups(k) / self.padded_k(k)


@dataclass(frozen=True)
class QTensor:
    """A weight of codes, unpacked: codes u8 [..., N, Kp], scale [..., N, KG], zero u8 [..., N, KG] or None."""

    codes: Array
    scale: Array
    zero: Array | None
    spec: QuantSpec
    k: int  # logical K; codes of the padding k..Kp decode to 0

    def dequantize(self) -> Array:
        """float32 [..., N, K]."""
        *leading, rows, padded = self.codes.shape
        groups = self.scale.shape[-1]
        codes = self.codes.reshape(*leading, rows, groups, padded // groups)
        values = fp8.decode(codes) if self.spec.is_fp8 else codes.astype(np.float32)
        values -= np.float32(self.spec.zero_point) if self.zero is None else self.zero[..., None]
        values *= self.scale[..., None].astype(np.float32)
        return values.reshape(*leading, rows, padded)[..., : self.k]


def as_float32(x: Array) -> Array:
    """`x`, numbers or fp8.CODED, as float32. bfloat16 goes through a shift, several times faster than its cast."""
    if x.dtype == fp8.CODED:
        return fp8.values(x)
    if x.dtype == NUMPY_DTYPES["bf16"]:
        wide = x.view(np.uint16).astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return x.astype(np.float32, copy=False)


def to_float(w: Array, spec: QuantSpec) -> Array:
    """w[..., K], numbers or fp8.CODED, in the float format `spec`. Raises OutOfRange where that is infinity."""
    if spec.element == "f32":
        return as_float32(w)
    rows = w.reshape(-1, w.shape[-1])
    out = np.empty(rows.shape, NUMPY_DTYPES[spec.element])
    for chunk in _chunks(*rows.shape):
        with np.errstate(over="ignore"):
            out[chunk] = as_float32(rows[chunk])
        _require_finite(out[chunk], spec)
    return out.reshape(w.shape)


def quantize(w: Array, spec: QuantSpec) -> QTensor:
    """Round float w[..., N, K] to the format `spec`, to nearest. Codes of fp8.CODED stay as they are in fp8.

    Raises OutOfRange where a code with its scale would be infinity.
    """
    if spec.is_float:
        raise UnknownWeightFormat(text=f"{spec.name} (not a format of codes)")
    with np.errstate(over="ignore"):
        rounded = _to_fp8(w, spec) if spec.is_fp8 else _to_integers(w, spec)
        _require_finite(rounded.scale, spec)
        if rounded.scale.dtype == np.float32 and w.dtype != fp8.CODED:
            # Codes that are kept were multiplied with their scales by the reader.
            _require_finite(rounded.scale * np.float32(spec.largest_code), spec)
    return rounded


def _require_finite(values: Array, spec: QuantSpec) -> None:
    """Raises OutOfRange for an infinity. Types of two bytes are looked at as integers, many times as fast."""
    if values.size == 0:
        return
    infinity = _INFINITY.get(values.dtype)
    if infinity is None:
        finite = bool(np.isfinite(values).all())
    else:
        finite = bool(values.view(np.int16).max() < infinity and values.view(np.uint16).max() < (infinity | _SIGN))
    if not finite:
        raise OutOfRange(format=spec.name)


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _CHUNK_ELEMENTS // max(1, columns))
    return (slice(start, start + step) for start in range(0, rows, step))


def _to_integers(w: Array, spec: QuantSpec) -> QTensor:
    *leading, k = w.shape
    rows, padded = w.reshape(-1, k), spec.padded_k(k)
    groups = spec.scale_groups(k)
    codes = np.empty((rows.shape[0], padded), np.uint8)
    scale = np.empty((rows.shape[0], groups), NUMPY_DTYPES[spec.scale_dtype])
    zero = None if spec.symmetric else np.empty(scale.shape, np.uint8)
    for chunk in _chunks(rows.shape[0], padded):
        values = _padded(as_float32(rows[chunk]), padded).reshape(-1, groups, padded // groups)
        chunk_zero = None if zero is None else zero[chunk]
        _quantize_chunk(values, spec, codes[chunk].reshape(values.shape), scale[chunk], chunk_zero)
    shaped_zero = None if zero is None else zero.reshape(*leading, groups)
    return QTensor(codes.reshape(*leading, padded), scale.reshape(*leading, groups), shaped_zero, spec, k)


def _to_fp8(w: Array, spec: QuantSpec) -> QTensor:
    *leading, rows, k = w.shape
    padded, groups = spec.padded_k(k), spec.scale_groups(k)
    codes = np.empty((*leading, rows, padded), np.uint8)
    scale = np.empty((*leading, rows, groups), np.float32)
    for index in np.ndindex(*leading):
        if w.dtype == fp8.CODED:
            # The last scale goes on behind the end: padding does not make a group's scales differ.
            whole = np.pad(w[index], ((0, 0), (0, padded - k)), mode="edge")
            whole["code"][:, k:] = 0
            codes[index], scale[index] = fp8.keep(whole)
        else:
            codes[index], scale[index] = fp8.encode(_padded(as_float32(w[index]), padded))
    return QTensor(codes, scale, None, spec, k)


def quantize_rows(x: Array, group: int) -> tuple[Array, Array, Array]:
    """Round activations x[..., K] to int8 in groups of `group`.

    Returns data i8 [..., Kp] (0 in the padding), scale f32 [..., Kp/group] = amax/127, and sum i32 [..., Kp/group],
    the sum of the codes of a group. The codes are rint(x * (127 / amax)), all in float32: kernels reproduce them
    exactly.
    """
    *leading, k = x.shape
    padded = -(-k // group) * group
    values = _padded(x.reshape(-1, k).astype(np.float32), padded).reshape(-1, padded // group, group)
    amax = np.abs(values).max(axis=-1)
    inverse = np.float32(127) / np.where(amax > 0, amax, np.float32(1))
    data = np.rint(values * inverse[..., None]).astype(np.int8)
    scale = (amax * np.float32(1 / 127)).astype(np.float32)
    total = data.sum(axis=-1, dtype=np.int32)
    shape = (*leading, padded // group)
    return data.reshape(*leading, padded), scale.reshape(shape), total.reshape(shape)


def _padded(x: Array, columns: int) -> Array:
    """x[N, K] with zero columns up to `columns`, x itself when it has them."""
    if x.shape[1] == columns:
        return x
    out = np.zeros((x.shape[0], columns), x.dtype)
    out[:, : x.shape[1]] = x
    return out


def _extremes(values: Array) -> tuple[Array, Array]:
    """Smallest and largest of each group of values [N, KG, G].

    numpy reduces a short last axis element by element; groups laid side by side are reduced by whole vectors, six times
    as fast for G = 32, transposition included.
    """
    if values.shape[-1] > max(GROUPS):
        return values.min(axis=-1), values.max(axis=-1)
    columns = np.ascontiguousarray(values.reshape(-1, values.shape[-1]).T)
    return columns.min(axis=0).reshape(values.shape[:-1]), columns.max(axis=0).reshape(values.shape[:-1])


def _lengthen(exact: Array, scale: Array, divisor: Array) -> None:
    """Round up the scales [N, KG] of which rounding took so much that the largest code would not reach its weight.

    Below the normal numbers of float16 a scale has few bits, and none below 3e-8: its whole group would become zero.
    """
    if scale.dtype == np.float32 or np.abs(divisor).min() >= _FINE_SCALE:
        return
    short = np.abs(exact) > np.abs(divisor) * np.float32(1 + 1 / 256)  # 1/256: half a code of 127
    if short.any():
        away = np.copysign(np.float32(np.inf), exact[short]).astype(scale.dtype)
        scale[short] = np.nextafter(scale[short], away)
        divisor[short] = scale[short]


def _quantize_chunk(values: Array, spec: QuantSpec, codes: Array, scale: Array, zero: Array | None) -> None:
    """Fill codes [N, KG, G], scale [N, KG] and zero [N, KG] from values [N, KG, G]."""
    low, high = _extremes(values)
    if zero is not None:
        np.minimum(low, 0, out=low)
        np.maximum(high, 0, out=high)
        exact = (high - low) / np.float32(15)
    elif spec.bits == 8:
        exact = np.maximum(high, -low) / np.float32(127)
    else:
        # The code range -8..7 is lopsided: its long side goes to the sign of the largest magnitude.
        exact = np.where(-low >= high, low, high) / np.float32(-8)
    scale[...] = exact
    divisor = scale.astype(np.float32)
    _lengthen(exact, scale, divisor)
    divisor[divisor == 0] = np.inf  # a group of zeros: every code is the zero point
    rounded = values / divisor[..., None]
    np.rint(rounded, out=rounded)
    if zero is None:
        rounded += np.float32(spec.zero_point)
    else:
        zero[...] = np.clip(np.rint(-low / divisor), 0, 15)
        rounded += zero[..., None]
    lowest, highest = (1, 255) if spec.bits == 8 else (0, 15)
    np.clip(rounded, lowest, highest, out=rounded)
    np.copyto(codes, rounded, casting="unsafe")
