"""Instructions kernels name themselves, each declared beside its meaning in numpy.

dot4: for each 32-bit lane r, acc[r] += sum over j < 4 of codes[r, j] * x[j], with 8-bit codes, signed 8-bit x that are
above -128, and no saturation. Codes are unsigned or, for instructions that want two signed operands, signed: all
implementations of one kind return the same integers. Codes of fewer bits may be added up in 16 bits first: `Narrow`.

mmla: acc[r, t] += sum over j < 8 of codes[r, j] * x[t, j] for two rows r and two rows t, as dot4 otherwise.

dot2: for each 32-bit lane r, acc[r] += sum over j < 2 of a[r, j] * b[r, j], with bfloat16 a and b and float32 acc.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.targets import tir as T

Expr = Any
Array = NDArray[Any]


@dataclass(frozen=True)
class Narrow:
    """dot4 in two steps, for codes below 128, which several products share the second of.

    products(codes, x): int16, codes[r, 2j] * x[2j] + codes[r, 2j + 1] * x[2j + 1], or each of these two products apart,
    which take two registers then. widen: int32 lanes, the sums of the two or four of a lane.
    """

    products: Callable[[Expr, Expr], Expr]
    widen: Callable[[Expr], Expr]
    registers: int = 1

    @staticmethod
    def most(bits: int) -> int:
        """How many products of pairs of codes of so many bits can be added up in 16 bits."""
        return 0x7FFF // (((1 << bits) - 1) * 127 * 2)


@dataclass(frozen=True)
class Intrinsic:
    """`emit` builds the expression; `meaning` computes the same on numpy arrays. `llvm`: IR its kernel must import.
    `signed`: codes are, so 8-bit ones come less 128. `narrow`: what is faster for codes of fewer bits.

    held(sums, type): the same sums, which LLVM must have at this place. What lies between two such places it
    orders by itself: else one sum after the other, for which codes and activations take all of few registers.
    """

    name: str
    lanes: int
    emit: Callable[..., Expr]
    meaning: Callable[..., Array]
    llvm: str = ""
    signed: bool = False
    narrow: Narrow | None = None
    held: Callable[[Expr, str], Expr] | None = None


def dot4_meaning(acc: Array, codes: Array, x: Array) -> Array:
    """acc i32 [lanes], codes u8 [lanes, 4], x i8 [4] -> i32 [lanes]."""
    return acc + codes.astype(np.int32) @ x.astype(np.int32)


def signed_dot4_meaning(acc: Array, codes: Array, x: Array) -> Array:
    """The same with codes i8 [lanes, 4]."""
    return dot4_meaning(acc, codes.view(np.int8), x)


def _vnni(lanes: int) -> Callable[[Expr, Expr, Expr], Expr]:
    """dot4 in one instruction: the same of AVX-512 and, of eight lanes, of AVX-VNNI, whichever the level has."""

    def emit(acc: Expr, codes: Expr, x: Expr) -> Expr:
        return T.call_llvm_pure_intrin(
            f"int32x{lanes}",
            f"llvm.x86.avx512.vpdpbusd.{32 * lanes}",
            acc,
            T.reinterpret(f"uint8x{4 * lanes}", codes),
            T.reinterpret(f"int8x{4 * lanes}", T.broadcast(x, lanes)),
        )

    return emit


def _madd512(acc: Expr, codes: Expr, x: Expr) -> Expr:
    """dot4 by two multiplications of 16-bit pairs: bytes 0 and 2, then bytes 1 and 3. 255 * 127 * 2 fits in 32 bits."""
    low_bytes, eight = T.broadcast(T.uint32(0x00FF00FF), 16), T.broadcast(T.int16(8), 32)
    x_pairs = T.reinterpret("int16x32", T.broadcast(x, 16))
    x_even = T.shift_right(T.shift_left(x_pairs, eight), eight)
    x_odd = T.shift_right(x_pairs, eight)
    even = T.bitwise_and(codes, low_bytes)
    odd = T.bitwise_and(T.shift_right(codes, T.broadcast(T.uint32(8), 16)), low_bytes)
    first = T.call_llvm_pure_intrin("int32x16", _PMADDWD512, T.reinterpret("int16x32", even), x_even)
    second = T.call_llvm_pure_intrin("int32x16", _PMADDWD512, T.reinterpret("int16x32", odd), x_odd)
    return acc + (first + second)


def _signs256(acc: Expr, codes: Expr, x: Expr) -> Expr:
    """dot4 of signed codes by their magnitudes and x with their signs: 2 * 128 * 127 fits in 16 bits."""
    bytes_, words = "int8x32", "int16x16"
    signed, factors = T.reinterpret(bytes_, codes), T.reinterpret(bytes_, T.broadcast(x, 8))
    magnitudes = T.max(signed, T.broadcast(T.int8(0), 32) - signed)  # of -128 its bits, which are 128 unsigned
    products = T.call_llvm_pure_intrin(bytes_, "llvm.x86.avx2.psign.b", factors, signed)
    pairs = T.call_llvm_pure_intrin(words, _PMADDUBSW256, magnitudes, products)
    return acc + T.call_llvm_pure_intrin("int32x8", _PMADDWD256, pairs, T.broadcast(T.int16(1), 16))


def _maddubs(lanes: int, by_bytes: str, by_pairs: str) -> Narrow:
    """By instructions that multiply bytes, and add up neighbours."""

    def products(codes: Expr, x: Expr) -> Expr:
        factors = T.reinterpret(f"int8x{4 * lanes}", T.broadcast(x, lanes))
        return T.call_llvm_pure_intrin(
            f"int16x{2 * lanes}", by_bytes, T.reinterpret(f"int8x{4 * lanes}", codes), factors
        )

    def widen(sums: Expr) -> Expr:
        ones = T.broadcast(T.int16(1), 2 * lanes)
        return T.call_llvm_pure_intrin(f"int32x{lanes}", by_pairs, sums, ones)

    return Narrow(products, widen)


# An empty instruction, which LLVM leaves in order with the others of its kind.
_HELD256_IR = """
define linkonce_odr hidden <8 x i32> @dsv3c_held256(<8 x i32> %sums) alwaysinline nounwind {
  %held = call <8 x i32> asm sideeffect "", "=x,0"(<8 x i32> %sums)
  ret <8 x i32> %held
}
"""


def _held256(sums: Expr, type_name: str) -> Expr:
    held = T.call_extern("int32x8", "dsv3c_held256", T.reinterpret("int32x8", sums))
    return T.reinterpret(type_name, held)


def _arm_dot(instruction: str) -> Callable[[Expr, Expr, Expr], Expr]:
    """dot4 in one instruction of AArch64."""

    def emit(acc: Expr, codes: Expr, x: Expr) -> Expr:
        factors = T.reinterpret("int8x16", T.broadcast(x, 4))
        return T.call_llvm_pure_intrin("int32x4", instruction, acc, T.reinterpret("int8x16", codes), factors)

    return emit


def _bytes_multiplied(codes: Expr, x: Expr) -> Expr:
    """int16x16, the product of each byte: `smull` and `smull2`, or with what it is added to `smlal` and `smlal2`."""
    factors = T.call_extern("int8x16", "dsv3c_factors", T.reinterpret("int8x16", T.broadcast(x, 4)))
    return T.Cast("int16x16", T.reinterpret("int8x16", codes)) * T.Cast("int16x16", factors)


def _four_added(products: Expr) -> Expr:
    """int32x4, the sums of four neighbours of int16x16, two of which 16 bits hold."""
    low, high = (T.Shuffle([products], list(range(start, start + 8))) for start in (0, 8))
    pairs = T.call_llvm_pure_intrin("int16x8", f"{_NEON}addp.v8i16", low, high)
    return T.call_llvm_pure_intrin("int32x4", f"{_NEON}saddlp.v4i32.v8i16", pairs)


def _smull(acc: Expr, codes: Expr, x: Expr) -> Expr:
    """dot4 by products of 16 bits. 2 * 128 * 127 fits in these, hence x above -128."""
    return acc + _four_added(_bytes_multiplied(codes, x))


# Nothing, but that LLVM does not know both halves to be alike: of such it uses one, and moves the upper half of codes
# down to multiply it, which `smlal2` takes from where it is.
_FACTORS_IR = """
define linkonce_odr hidden <16 x i8> @dsv3c_factors(<16 x i8> %x) alwaysinline nounwind {
  %same = call <16 x i8> asm "", "=w,0"(<16 x i8> %x) nounwind memory(none)
  ret <16 x i8> %same
}
"""

_NEON = "llvm.aarch64.neon."
_PMADDWD512, _PMADDWD256 = "llvm.x86.avx512.pmaddw.d.512", "llvm.x86.avx2.pmadd.wd"
_PMADDUBSW512, _PMADDUBSW256 = "llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx2.pmadd.ub.sw"

DOT4 = {
    "vnni512": Intrinsic("vnni512", 16, _vnni(16), dot4_meaning),
    "vnni256": Intrinsic("vnni256", 8, _vnni(8), dot4_meaning, _HELD256_IR, held=_held256),
    "madd512": Intrinsic(
        "madd512",
        16,
        _madd512,
        dot4_meaning,
        narrow=_maddubs(16, _PMADDUBSW512, _PMADDWD512),
    ),
    "signs256": Intrinsic(
        "signs256",
        8,
        _signs256,
        signed_dot4_meaning,
        _HELD256_IR,
        signed=True,
        narrow=_maddubs(8, _PMADDUBSW256, _PMADDWD256),
        held=_held256,
    ),
    "usdot": Intrinsic("usdot", 4, _arm_dot(f"{_NEON}usdot.v4i32.v16i8"), dot4_meaning),
    "sdot": Intrinsic("sdot", 4, _arm_dot(f"{_NEON}sdot.v4i32.v16i8"), signed_dot4_meaning, signed=True),
    "smull": Intrinsic(
        "smull",
        4,
        _smull,
        signed_dot4_meaning,
        _FACTORS_IR,
        signed=True,
        narrow=Narrow(_bytes_multiplied, _four_added, registers=2),
    ),
}


def mmla_meaning(acc: Array, codes: Array, x: Array) -> Array:
    """acc i32 [2, 2], codes u8 [2, 8], x i8 [2, 8] -> i32 [2, 2]: rows of codes by rows of x."""
    return np.asarray(acc + codes.astype(np.int32) @ x.astype(np.int32).T)


def _usmmla(acc: Expr, codes: Expr, x: Expr) -> Expr:
    """acc int32x4, codes uint32x4 (eight codes a row), x int8x16 (eight numbers a row)."""
    return T.call_llvm_pure_intrin("int32x4", f"{_NEON}usmmla.v4i32.v16i8", acc, T.reinterpret("int8x16", codes), x)


MMLA = {"usmmla": Intrinsic("usmmla", 4, _usmmla, mmla_meaning)}


def dot2_meaning(acc: Array, a: Array, b: Array) -> Array:
    """acc f32 [lanes], a and b bfloat16 [lanes, 2] -> f32 [lanes], but for the order and rounding of the additions."""
    products: Array = a.astype(np.float32) * b.astype(np.float32)
    return np.asarray(acc + products.sum(-1))


# TVM has no LLVM type for vectors of bfloat16, so dot2 comes as LLVM IR, which kernels import and LLVM inlines.
def _dot2(name: str, lanes: int, instruction: str) -> Intrinsic:
    """dot2 of acc float32x`lanes` with a and b of that type too, which hold pairs of bfloat16."""
    sums, pairs, symbol = f"<{lanes} x float>", f"<{2 * lanes} x bfloat>", f"dsv3c_{name}"
    llvm = f"""
declare {sums} @{instruction}({sums}, {pairs}, {pairs})
define linkonce_odr hidden {sums} @{symbol}({sums} %acc, {sums} %a, {sums} %b) alwaysinline nounwind {{
  %x = bitcast {sums} %a to {pairs}
  %y = bitcast {sums} %b to {pairs}
  %sum = call {sums} @{instruction}({sums} %acc, {pairs} %x, {pairs} %y)
  ret {sums} %sum
}}
"""

    def emit(acc: Expr, a: Expr, b: Expr) -> Expr:
        return T.call_extern(f"float32x{lanes}", symbol, acc, a, b)

    return Intrinsic(name, lanes, emit, dot2_meaning, llvm)


# What a kernel that calls `prefetch` must import.
PREFETCH_IR = """
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
define linkonce_odr hidden i32 @dsv3c_prefetch(ptr %p) alwaysinline nounwind {
  call void @llvm.prefetch.p0(ptr %p, i32 0, i32 2, i32 1)
  ret i32 0
}
"""


def prefetch(buffer: Any, at: Expr) -> None:
    """Fetch the cache line of buffer[at] into the second-level cache. No effect on any value."""
    T.evaluate(T.call_extern("int32", "dsv3c_prefetch", T.address_of(buffer[at])))


DOT2 = {
    "bf16_512": _dot2("bf16_512", 16, "llvm.x86.avx512bf16.dpbf16ps.512"),
    "bfdot": _dot2("bfdot", 4, "llvm.aarch64.neon.bfdot.v4f32.v8bf16"),
}


def typed(element: str, lanes: int) -> str:
    """TVM type name of `lanes` elements."""
    return element if lanes == 1 else f"{element}x{lanes}"


def splat(value: Expr, lanes: int) -> Expr:
    """A scalar in every lane; the scalar itself for one lane."""
    return value if lanes == 1 else T.broadcast(value, lanes)


def bf16_to_f32(bits: Expr, lanes: int) -> Expr:
    """uint16 bit patterns of bfloat16 -> float32, exact."""
    wide = T.shift_left(T.Cast(typed("uint32", lanes), bits), splat(T.uint32(16), lanes))
    return T.reinterpret(typed("float32", lanes), wide)


def bf16_pair_to_f32(words: Expr, lanes: int) -> tuple[Expr, Expr]:
    """uint32 words of two bfloat16 -> (low halves, high halves) as float32, exact."""
    low = T.shift_left(words, splat(T.uint32(16), lanes))
    high = T.bitwise_and(words, splat(T.uint32(0xFFFF0000), lanes))
    return T.reinterpret(typed("float32", lanes), low), T.reinterpret(typed("float32", lanes), high)


def f32_to_bf16(x: Expr, lanes: int) -> Expr:
    """float32 -> uint16 bit patterns of bfloat16, to nearest even. NaN stays NaN only by luck: caches hold none."""
    bits = T.reinterpret(typed("uint32", lanes), x)
    odd = T.bitwise_and(T.shift_right(bits, splat(T.uint32(16), lanes)), splat(T.uint32(1), lanes))
    rounded = bits + splat(T.uint32(0x7FFF), lanes) + odd
    return T.Cast(typed("uint16", lanes), T.shift_right(rounded, splat(T.uint32(16), lanes)))


def f32_to_bf16_pair(low: Expr, high: Expr, lanes: int) -> Expr:
    """Two float32 vectors -> uint32 words of two bfloat16, to nearest even."""
    words = [T.Cast(typed("uint32", lanes), f32_to_bf16(half, lanes)) for half in (low, high)]
    return T.bitwise_or(words[0], T.shift_left(words[1], splat(T.uint32(16), lanes)))


def f16_to_f32(x: Expr, lanes: int) -> Expr:
    """float16 -> float32, exact; one instruction on every level we build for."""
    return T.Cast(typed("float32", lanes), x)


def e8m0_to_f32(codes: Expr, lanes: int) -> Expr:
    """Exponents uint8 of powers of two, 127 for one and none of them 255 -> float32, exact."""
    bits = T.shift_left(T.Cast(typed("int32", lanes), codes), splat(T.int32(23), lanes))
    least = splat(T.int32(1 << 22), lanes)  # 2^-127, which is subnormal
    return T.reinterpret(typed("float32", lanes), T.max(bits, least))
