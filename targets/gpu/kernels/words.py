"""Elements narrower than a word, as numbers in registers, and rounding to bfloat16.

Widening goes through bits alone, so it is exact on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dsv3c.targets import tir as T
from dsv3c.targets.gpu.kernels.frame import f32

MANTISSA = 23  # bits of a float32's

Expr = Any
Buffer = Any


def unsigned(x: Expr) -> Expr:
    return T.Cast("uint32", x)


def bit_field(word: Expr, start: Expr, bits: int) -> Expr:
    """`bits` bits of a u32 word from bit `start` on, as u32."""
    shifted = word if isinstance(start, int) and start == 0 else T.shift_right(word, _u32(start))
    return T.bitwise_and(shifted, T.uint32((1 << bits) - 1))


def low_bf16(word: Expr) -> Expr:
    """The first bfloat16 of a word."""
    return T.reinterpret("float32", T.shift_left(word, T.uint32(16)))


def high_bf16(word: Expr) -> Expr:
    return T.reinterpret("float32", T.bitwise_and(word, T.uint32(0xFFFF0000)))


def f16(bits: Expr) -> Expr:
    """float32 of the float16 in the low half of a u32 whose high half is zero."""
    return T.Cast("float32", T.reinterpret("float16", T.Cast("uint16", bits)))


def e4m3(code: Expr) -> Expr:
    """float32 of a float8_e4m3fn, not NaN, in the low byte of a u32; no float32 on the way is subnormal."""
    rest = T.bind(T.bitwise_and(code, T.uint32(0x7F)))
    normal = T.reinterpret("float32", T.bind(T.shift_left(rest, T.uint32(20)) + T.uint32(120 << 23)))
    subnormal = T.Cast("float32", T.Cast("int32", rest)) * f32(2.0**-9)
    size = T.bind(T.Select(rest < T.uint32(8), subnormal, normal))
    return T.Select(code > T.uint32(127), f32(0) - size, size)


def e4m3_bits(x: Expr) -> Expr:
    """The code of the float8_e4m3fn nearest to x, the largest one beyond it, in the low byte of a u32."""
    size = T.bind(T.min(T.fabs(x), f32(448)))
    bits = T.bind(T.reinterpret("uint32", size))
    odd = T.bitwise_and(T.shift_right(bits, T.uint32(20)), T.uint32(1))
    normal = T.shift_right(bits + T.uint32(0x7FFFF) + odd, T.uint32(20)) - T.uint32(120 << 3)
    # Subnormals are multiples of 2^-9, as are the numbers from 2^14 on.
    subnormal = T.reinterpret("uint32", T.bind(size + f32(2.0**14))) - T.uint32((127 + 14) << MANTISSA)
    sign = T.bitwise_and(T.shift_right(T.reinterpret("uint32", x), T.uint32(24)), T.uint32(0x80))
    return T.bitwise_or(T.Select(size < f32(2.0**-6), subnormal, normal), sign)


def e2m1(code: Expr) -> Expr:
    """float32 of a float4_e2m1fn in the low bits of a u32."""
    rest = T.bind(T.bitwise_and(code, T.uint32(7)))
    normal = T.reinterpret("float32", T.bind(T.shift_left(rest, T.uint32(22)) + T.uint32(126 << 23)))
    subnormal = T.Cast("float32", T.Cast("int32", rest)) * f32(0.5)
    size = T.bind(T.Select(rest < T.uint32(2), subnormal, normal))
    return T.Select(code > T.uint32(7), f32(0) - size, size)


def e8m0(code: Expr) -> Expr:
    """float32 of a power of two by its exponent, a byte in a u32 that is not 255; 2^-127 may count as zero."""
    return T.reinterpret("float32", T.bind(T.max(T.shift_left(code, T.uint32(23)), T.uint32(1 << 22))))


def entry(table: Sequence[float], code: Expr) -> Expr:
    """The entry of a table, of a power of two, whose number is in the low bits of a u32.

    By halves of what is left of it: constants that threads take by numbers of their own are one memory access each.
    """
    found = [f32(value) for value in table]
    for bit in range(len(table).bit_length() - 1):
        is_set = T.bind(T.bitwise_and(code, T.uint32(1 << bit)) != T.uint32(0))
        found = [T.Select(is_set, high, low) for low, high in zip(found[::2], found[1::2], strict=True)]
        found = [T.bind(value) for value in found]
    return found[0]


def numbers(word: Expr, starts: Sequence[int], bits: int, zero: Expr) -> list[Expr]:
    """float32 of the fields of a u32 word, each `bits` bits from one of `starts` on, less `zero`, an integer below 2^8.

    A field is put under the exponent of the power of two whose mantissa has a one at the field's lowest bit, and that
    power taken away again: two operations at full rate, where converting integers has a quarter of it on many GPUs.
    Fields that the mantissa does not reach are shifted down first, together.
    """
    aside = min(start for start in starts if start + bits > MANTISSA) // bits * bits
    moved = T.bind(T.shift_right(word, T.uint32(aside)))
    found, zeros = [], dict[int, Expr]()
    for start in starts:
        source, place = (word, start) if start + bits <= MANTISSA else (moved, start - aside)
        power = 2.0 ** (MANTISSA - place)
        if place not in zeros:
            zeros[place] = T.bind(f32(power) + zero)
        field = T.bitwise_and(source, T.uint32(((1 << bits) - 1) << place))
        placed = T.bitwise_or(field, T.uint32((127 + MANTISSA - place) << MANTISSA))
        found.append(T.bind(T.reinterpret("float32", placed) - zeros[place]))
    return found


def load(buffer: Buffer, index: Expr, dtype: str) -> Expr:
    """Element `index` of an operand of IR dtype f32, f16, bf16, i8 or u8, as float32."""
    if dtype == "f32":
        return buffer[index]
    if dtype in ("f16", "bf16"):
        word = buffer[T.shift_right(index, T.int32(1))]
        bits = T.bind(bit_field(word, T.bitwise_and(index, T.int32(1)) * 16, 16))
        return f16(bits) if dtype == "f16" else low_bf16(bits)
    word = buffer[T.shift_right(index, T.int32(2))]
    byte = T.bind(bit_field(word, T.bitwise_and(index, T.int32(3)) * 8, 8))
    number = T.Cast("float32", T.Cast("int32", byte))
    return T.Select(byte > T.uint32(127), number - f32(256), number) if dtype == "i8" else number


def bf16_bits(x: Expr) -> Expr:
    """The bits of x rounded to bfloat16, to nearest even, in the low half of a u32."""
    bits = T.bind(T.reinterpret("uint32", x))
    odd = T.bitwise_and(T.shift_right(bits, T.uint32(16)), T.uint32(1))
    return T.shift_right(bits + T.uint32(0x7FFF) + odd, T.uint32(16))


def _u32(x: Expr) -> Expr:
    return T.uint32(x) if isinstance(x, int) else unsigned(x)
