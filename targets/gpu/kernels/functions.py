"""exp, sigmoid, sine and cosine, the same on every device.

What GPUs offer is not enough: Vulkan lets sin and cos err by 2^-11, and all devices are only good near zero, while
angles of rotary embeddings go up to the position. Here arguments are reduced in integers, which no fast mathematics of
a compiler can spoil.
"""

from __future__ import annotations

from typing import Any

from dsv3c.targets import tir as T
from dsv3c.targets.gpu.kernels.frame import f32

Expr = Any

# exp(x) = 2^n * exp(r), n = round(x / ln 2). ln 2 is split so that n*LN2_HIGH is exact; the polynomial is the Taylor
# series to degree 7, whose error on |r| <= ln(2)/2 is below 2^-27.
_LOG2E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 0.693145751953125, 1.428606765330187e-06
_EXP_TAYLOR = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)

# 1 / (2 pi) in units of 2^-32 and, for the rest, of 2^-64.
_TURN_HIGH, _TURN_LOW = 0x28BE60DB, 0x9391054A
_TURN = 6.283185307179586 / 2**32  # radians of one unit of a 32-bit fraction of a turn
_SIN = (2.718311493989822e-6, -1.984126982958954e-4, 8.333333333332211e-3, -0.16666666666666613, 1.0)
_COS = (2.4801587301587e-5, -1.3888888888888889e-3, 0.041666666666666664, -0.5, 1.0)


def exp(x: Expr) -> Expr:
    """exp of a float32, relative error below 2e-7; arguments are clamped to [-87, 88]."""
    x = T.bind(T.max(T.min(x, f32(88)), f32(-87)))
    n = T.bind(T.floor(x * f32(_LOG2E) + f32(0.5)))
    r = T.bind((x - n * f32(_LN2_HIGH)) - n * f32(_LN2_LOW))
    exponent = T.shift_left(T.Cast("int32", n) + 127, T.int32(23))
    return T.bind(_polynomial(_EXP_TAYLOR, r) * T.reinterpret("float32", exponent))


def sigmoid(x: Expr) -> Expr:
    return f32(1) / (f32(1) + exp(f32(0) - x))


def silu(x: Expr) -> Expr:
    x = T.bind(x)
    return x * sigmoid(x)


def cos_sin(x: Expr) -> tuple[Expr, Expr]:
    """cos and sin of a float32, 0 <= x < 2^22, absolute error below 2e-7."""
    small = T.bind(x < f32(0.25))
    f = T.bind(_turn_fraction(T.bind(T.max(x, f32(0.25)))))
    quadrant = T.bind(T.shift_right(f + T.uint32(1 << 29), T.uint32(30)))
    rest = T.reinterpret("int32", f - T.shift_left(quadrant, T.uint32(30)))  # wraps to -2^29 … 2^29
    angle = T.bind(T.Select(small, x, T.Cast("float32", rest) * f32(_TURN)))
    turned = T.bind(T.Select(small, T.uint32(0), T.bitwise_and(quadrant, T.uint32(3))))
    square = T.bind(angle * angle)
    sin, cos = T.bind(_polynomial(_SIN, square) * angle), T.bind(_polynomial(_COS, square))
    swapped = T.bind(T.bitwise_and(turned, T.uint32(1)) == T.uint32(1))
    cos_value, sin_value = T.Select(swapped, sin, cos), T.Select(swapped, cos, sin)
    cos_negative = T.bitwise_and(turned + T.uint32(1), T.uint32(2)) == T.uint32(2)  # quadrants 1 and 2
    sin_negative = T.bitwise_and(turned, T.uint32(2)) == T.uint32(2)  # 2 and 3
    return (
        T.bind(T.Select(cos_negative, f32(0) - cos_value, cos_value)),
        T.bind(T.Select(sin_negative, f32(0) - sin_value, sin_value)),
    )


def _turn_fraction(x: Expr) -> Expr:
    """x / (2 pi) modulo 1 in units of 2^-32, 0.25 <= x < 2^22; off by less than four units.

    x is m * 2^-s with a whole m of 24 bits, so m is multiplied by 64 bits of 2^-s / (2 pi).
    """
    bits = T.bind(T.reinterpret("uint32", x))
    m = T.bind(T.bitwise_or(T.bitwise_and(bits, T.uint32(0x7FFFFF)), T.uint32(0x800000)))
    s = T.bind(T.uint32(150) - T.shift_right(bits, T.uint32(23)))
    high = T.shift_right(T.uint32(_TURN_HIGH), s)
    low = T.bitwise_or(T.shift_left(T.uint32(_TURN_HIGH), T.uint32(32) - s), T.shift_right(T.uint32(_TURN_LOW), s))
    low = T.bind(low)
    low_high, low_low = T.bind(T.shift_right(low, T.uint32(16))), T.bind(T.bitwise_and(low, T.uint32(0xFFFF)))
    m_high, m_low = T.bind(T.shift_right(m, T.uint32(12))), T.bind(T.bitwise_and(m, T.uint32(0xFFF)))
    carried = T.shift_right(m_high * low_high, T.uint32(4)) + T.shift_right(m_low * low_high, T.uint32(16))
    return m * high + carried + T.shift_right(m_high * low_low, T.uint32(20))


def _polynomial(coefficients: tuple[float, ...], x: Expr) -> Expr:
    """Horner's rule, highest coefficient first."""
    value = f32(coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + f32(coefficient)
    return value
