"""Vector code that kernels share: loads and stores, reductions, exp, and loops over columns of any width.

Lengths that no vector divides are cut into 8, 4, 2 and 1 lanes: no kernel reads or writes past a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dsv3c.targets import tir as T
from dsv3c.targets.cpu.intrinsics import bf16_to_f32, e8m0_to_f32, f16_to_f32, f32_to_bf16, splat, typed

Expr = Any
Buffer = Any

WIDTH = 16  # lanes of an elementwise vector; LLVM splits it where registers are narrower


def load(buffer: Buffer, offset: Expr, lanes: int) -> Expr:
    """`lanes` elements from `offset` on, in the buffer's own type."""
    return buffer[offset] if lanes == 1 else buffer[T.ramp(offset, 1, lanes)]


def store(buffer: Buffer, offset: Expr, value: Expr, lanes: int) -> None:
    T.buffer_store(buffer, value, [offset if lanes == 1 else T.ramp(offset, 1, lanes)])


def load_f32(buffer: Buffer, offset: Expr, lanes: int, element: str = "f32") -> Expr:
    """`lanes` elements of IR dtype `element` as float32."""
    value = load(buffer, offset, lanes)
    if element == "f16":
        return f16_to_f32(value, lanes)
    if element == "e8m0":
        return e8m0_to_f32(value, lanes)
    return bf16_to_f32(value, lanes) if element == "bf16" else value


def store_f32(buffer: Buffer, offset: Expr, value: Expr, lanes: int, element: str = "f32") -> None:
    """Store float32 lanes as IR dtype `element` (f32 or bf16)."""
    store(buffer, offset, f32_to_bf16(T.bind(value), lanes) if element == "bf16" else value, lanes)


def f32(value: float, lanes: int = 1) -> Expr:
    """A float32 constant in every lane."""
    return splat(T.float32(value), lanes)


def columns(n: int, body: Callable[[Expr, int], None], start: int = 0) -> None:
    """body(offset, lanes) over columns start..n: whole vectors in a loop, then the tail in smaller and smaller ones."""
    whole = (n - start) // WIDTH
    if whole:
        with T.serial(0, whole) as step:
            body(step * WIDTH + start, WIDTH)
    offset = start + whole * WIDTH
    for lanes in (8, 4, 2, 1):
        if n - offset >= lanes:
            body(offset, lanes)
            offset += lanes


def horizontal(value: Expr, lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """All lanes combined in a fixed tree: the upper half onto the lower one until a scalar is left."""
    value = T.bind(value)
    while lanes > 1:
        lanes //= 2
        low, high = list(range(lanes)), list(range(lanes, 2 * lanes))
        value = T.bind(combine(T.Shuffle([value], low), T.Shuffle([value], high)))
    return value


def transpose(rows: list[Expr]) -> list[Expr]:
    """Column i of up to sixteen float32 rows of sixteen, for each i; missing rows are zeros."""
    out = [*rows, *[f32(0, WIDTH)] * (WIDTH - len(rows))]
    for bit in (8, 4, 2, 1):  # swap the blocks off the diagonal, half as large each time
        lower = [i if not i & bit else WIDTH + (i ^ bit) for i in range(WIDTH)]
        upper = [WIDTH + i if i & bit else i | bit for i in range(WIDTH)]
        for i in (i for i in range(WIDTH) if not i & bit):
            pair = [out[i], out[i | bit]]
            out[i], out[i | bit] = T.bind(T.Shuffle(pair, lower)), T.bind(T.Shuffle(pair, upper))
    return out


def across(rows: list[Expr], combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Lane i: all lanes of the i-th of sixteen vectors of sixteen, combined on the way of a transposition."""
    out = list(rows)
    for bit in (8, 4, 2, 1):
        lower = [i if not i & bit else WIDTH + (i ^ bit) for i in range(WIDTH)]
        upper = [WIDTH + i if i & bit else i | bit for i in range(WIDTH)]
        pairs = [[out[i], out[i + bit]] for i in range(bit)]
        out = [T.bind(combine(T.Shuffle(pair, lower), T.Shuffle(pair, upper))) for pair in pairs]
    return out[0]


def add(a: Expr, b: Expr) -> Expr:
    return a + b


class Reduction:
    """A running reduction over the columns of a row: one vector accumulator for whole vectors, one scalar for tails."""

    def __init__(self, combine: Callable[[Expr, Expr], Expr], start: float) -> None:
        self._combine = combine
        self._vector = T.alloc_buffer((WIDTH,), "float32", scope="global")
        self._scalar = T.alloc_buffer((1,), "float32", scope="global")
        store(self._vector, 0, f32(start, WIDTH), WIDTH)
        store(self._scalar, 0, f32(start), 1)

    def update(self, value: Expr, lanes: int) -> None:
        if lanes == WIDTH:
            store(self._vector, 0, self._combine(load(self._vector, 0, WIDTH), value), WIDTH)
            return
        store(self._scalar, 0, self._combine(self._scalar[0], horizontal(value, lanes, self._combine)), 1)

    def result(self) -> Expr:
        total = horizontal(load(self._vector, 0, WIDTH), WIDTH, self._combine)
        return T.bind(self._combine(total, self._scalar[0]))


# exp(x) = 2^n * exp(r), n = rint(x / ln 2), |r| <= ln(2)/2. ln 2 is split so that n*LN2_HIGH is exact; the polynomial
# is the Taylor series to degree 7, whose error on that interval is below 2^-27.
_LOG2E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 0.693145751953125, 1.428606765330187e-06
_EXP_TAYLOR = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
_EXP_LOWEST, _EXP_HIGHEST = -87.0, 88.0  # results stay normal numbers
_EXP2_LOWEST = -125.0


def exp(x: Expr, lanes: int) -> Expr:
    """exp of float32 lanes, relative error below 2e-7; arguments are clamped to [-87, 88]."""
    x = T.bind(T.max(T.min(x, f32(_EXP_HIGHEST, lanes)), f32(_EXP_LOWEST, lanes)))
    n = T.bind(T.nearbyint(x * f32(_LOG2E, lanes)))
    r = T.bind((x - n * f32(_LN2_HIGH, lanes)) - n * f32(_LN2_LOW, lanes))
    series = f32(_EXP_TAYLOR[0], lanes)
    for coefficient in _EXP_TAYLOR[1:]:
        series = series * r + f32(coefficient, lanes)
    integer = typed("int32", lanes)
    exponent = T.shift_left(T.Cast(integer, n) + splat(T.int32(127), lanes), splat(T.int32(23), lanes))
    return series * T.reinterpret(typed("float32", lanes), exponent)


def exp2(x: Expr, lanes: int, degree: int) -> Expr:
    """2^x of float32 lanes below 128, at least 2^-125. Relative error below 2e-7 with degree 7, 5e-5 with degree 4."""
    x = T.bind(T.max(x, f32(_EXP2_LOWEST, lanes)))
    n = T.bind(T.nearbyint(x))
    r = T.bind(x - n)
    coefficients = [math.log(2) ** k / math.factorial(k) for k in range(degree, -1, -1)]
    series = f32(coefficients[0], lanes)
    for coefficient in coefficients[1:]:
        series = series * r + f32(coefficient, lanes)
    integer = typed("int32", lanes)
    # n goes into the exponent: the series lies in [0.7, 1.5], so the result stays a normal number.
    bits = T.reinterpret(integer, series) + T.shift_left(T.Cast(integer, n), splat(T.int32(23), lanes))
    return T.reinterpret(typed("float32", lanes), bits)


def sigmoid(x: Expr, lanes: int) -> Expr:
    return f32(1, lanes) / (f32(1, lanes) + exp(f32(0, lanes) - x, lanes))


def silu(x: Expr, lanes: int) -> Expr:
    x = T.bind(x)
    return x / (f32(1, lanes) + exp(f32(0, lanes) - x, lanes))
