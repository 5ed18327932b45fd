"""Each named instruction computes its numpy meaning, and exp keeps its promised accuracy."""

from functools import reduce
from operator import add

import ml_dtypes
import numpy as np
import pytest
import tvm_ffi
from tvm.script.ir_builder import tirx as T

from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.targets.cpu.intrinsics import DOT2, DOT4, Narrow, bf16_pair_to_f32, bf16_to_f32, f16_to_f32, f32_to_bf16
from dsv3c.targets.cpu.kernels.frame import Operand, prim_func
from dsv3c.targets.cpu.kernels.vector import columns, exp, load, store
from dsv3c.targets.x86.levels import LEVELS
from tests.targets.libraries import build_library

N = 4096


def unary(source, target, compute):
    """y[N] = compute(x[N], lanes)."""

    def body(buffers):
        columns(N, lambda at, n: store(buffers["y"], at, compute(load(buffers["x"], at, n), n), n))

    return prim_func((Operand("x", source, N), Operand("y", target, N)), body)


def pairs(buffers):
    with T.serial(0, N // 32) as i:
        words = T.reinterpret("uint32x16", load(buffers["x"], i * 32, 32))
        for half, value in enumerate(bf16_pair_to_f32(words, 16)):
            store(buffers["y"], i * 32 + half * 16, value, 16)


def dot4(level):
    """acc i32 [lanes], codes u8 [lanes * 4], x i8 [4]."""
    intrinsic = DOT4[level.dot]
    lanes = intrinsic.lanes

    def body(buffers):
        codes = T.reinterpret(f"uint32x{lanes}", load(buffers["codes"], 0, 4 * lanes))
        x = T.reinterpret("int32", load(buffers["x"], 0, 4))
        store(buffers["acc"], 0, intrinsic.emit(load(buffers["acc"], 0, lanes), codes, x), lanes)

    operands = (Operand("acc", "i32", lanes), Operand("codes", "u8", 4 * lanes), Operand("x", "i8", 4))
    return prim_func(operands, body, intrinsic.llvm)


def narrow(level, bits):
    """acc i32 [lanes] of as many codes u8 [lanes * 4] and x i8 [4] as are added up in 16 bits."""
    intrinsic, count = DOT4[level.dot], Narrow.most(bits)
    lanes = intrinsic.lanes

    def body(buffers):
        sums = []
        for i in range(count):
            codes = T.reinterpret(f"uint32x{lanes}", load(buffers["codes"], i * 4 * lanes, 4 * lanes))
            sums.append(intrinsic.narrow.products(codes, T.reinterpret("int32", load(buffers["x"], i * 4, 4))))
        store(buffers["acc"], 0, intrinsic.narrow.widen(reduce(add, sums)), lanes)

    operands = (Operand("acc", "i32", lanes), Operand("codes", "u8", 4 * lanes * count), Operand("x", "i8", 4 * count))
    return prim_func(operands, body)


def dot2(level):
    """acc f32 [lanes], a and b bfloat16 [lanes * 2]."""
    intrinsic = DOT2[level.dot2]
    lanes = intrinsic.lanes

    def body(buffers):
        a, b = (T.reinterpret(f"float32x{lanes}", load(buffers[name], 0, 2 * lanes)) for name in "ab")
        store(buffers["acc"], 0, intrinsic.emit(load(buffers["acc"], 0, lanes), a, b), lanes)

    pairs = [Operand(name, "bf16", 2 * lanes) for name in "ab"]
    return prim_func((Operand("acc", "f32", lanes), *pairs), body, intrinsic.llvm)


@pytest.fixture(scope="module")
def library(level, tmp_path_factory):
    functions = {"dot2": dot2(level)} if level.dot2 else {}
    if DOT4[level.dot].narrow:
        functions |= {f"narrow{bits}": narrow(level, bits) for bits in range(2, 8)}
    functions |= {
        "dot4": dot4(level),
        "exp": unary("f32", "f32", exp),
        "bf16_to_f32": unary("bf16", "f32", bf16_to_f32),
        "f16_to_f32": unary("f16", "f32", f16_to_f32),
        "f32_to_bf16": unary("f32", "bf16", f32_to_bf16),
        "pairs": prim_func((Operand("x", "bf16", N), Operand("y", "f32", N)), pairs),
    }
    path = build_library(functions, level, tmp_path_factory.mktemp(level.name) / "intrinsics.so")
    return tvm_ffi.load_module(str(path))


def aligned(values):
    raw = np.zeros(values.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    out = raw[start : start + values.nbytes].view(values.dtype)
    out[:] = values
    return out


def apply(function, x, dtype):
    y = aligned(np.zeros(N, dtype))
    function(aligned(x), y)
    return y


def test_every_level_has_an_intrinsic_of_its_width():
    for level in LEVELS:
        assert DOT4[level.dot].lanes == level.lanes


def test_dot2_is_its_meaning(library, level):
    if level.dot2 is None:
        pytest.skip("no bfloat16 product at this level")
    intrinsic, rng = DOT2[level.dot2], np.random.default_rng(0)
    acc = rng.standard_normal(intrinsic.lanes).astype(np.float32)
    a, b = (rng.standard_normal((intrinsic.lanes, 2)).astype(ml_dtypes.bfloat16) for _ in range(2))
    got = aligned(acc)
    library["dot2"](got, *(aligned(x.reshape(-1).view(np.uint16)) for x in (a, b)))
    np.testing.assert_allclose(got, intrinsic.meaning(acc, a, b), rtol=0, atol=1e-6)


@pytest.mark.parametrize("extreme", [None, 255, 128])
def test_dot4_is_its_meaning(library, level, extreme):
    intrinsic, rng = DOT4[level.dot], np.random.default_rng(0)
    codes = rng.integers(0, 256, (intrinsic.lanes, 4)).astype(np.uint8)
    x = rng.integers(-127, 128, 4).astype(np.int8)
    if extreme is not None:  # where saturating 16-bit sums would differ
        codes[:], x[:] = extreme, [-127, -127, 127, 127]
        codes[::2, 2:] = 0
    acc = rng.integers(-(2**30), 2**30, intrinsic.lanes).astype(np.int32)
    got = aligned(acc)
    library["dot4"](got, aligned(codes.reshape(-1)), aligned(x))
    np.testing.assert_array_equal(got, intrinsic.meaning(acc, codes, x))


@pytest.mark.parametrize("bits", range(2, 8))
@pytest.mark.parametrize("sign", [-1, 1])
def test_products_in_two_steps_do_not_saturate(library, level, bits, sign):
    intrinsic, count = DOT4[level.dot], Narrow.most(bits)
    if intrinsic.narrow is None:
        pytest.skip("one instruction does it at this level")
    codes = np.full((count, intrinsic.lanes, 4), (1 << bits) - 1, np.uint8)
    codes[:, 1] = np.random.default_rng(bits).integers(0, 1 << bits, (count, 4))
    x = np.full((count, 4), sign * 127, np.int8)
    got = aligned(np.zeros(intrinsic.lanes, np.int32))
    library[f"narrow{bits}"](got, aligned(codes.reshape(-1)), aligned(x.reshape(-1)))
    expected = sum(intrinsic.meaning(np.int32(0), *pair) for pair in zip(codes, x, strict=True))
    np.testing.assert_array_equal(got, expected)


def test_exp(library):
    x = np.linspace(-87, 88, N).astype(np.float32)
    got = apply(library["exp"], x, np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(got / exact - 1).max() < 2e-7
    assert (apply(library["exp"], np.full(N, -1e30, np.float32), np.float32) < 1e-37).all()


def test_half_formats_widen_exactly(library):
    values = np.random.default_rng(1).standard_normal(N).astype(np.float32) * 100
    bf16, f16 = values.astype(NUMPY_DTYPES["bf16"]), values.astype(np.float16)
    bits = bf16.view(np.uint16)
    np.testing.assert_array_equal(apply(library["bf16_to_f32"], bits, np.float32), bf16.astype(np.float32))
    np.testing.assert_array_equal(apply(library["f16_to_f32"], f16, np.float32), f16.astype(np.float32))
    halves = bf16.astype(np.float32).reshape(-1, 16, 2).swapaxes(1, 2).reshape(-1)
    np.testing.assert_array_equal(apply(library["pairs"], bits, np.float32), halves)


def test_bf16_rounds_to_nearest_even(library):
    values = np.random.default_rng(2).standard_normal(N).astype(np.float32)
    values[:2] = np.array([0x3F808000, 0x3F818000], np.uint32).view(np.float32)  # ties
    expected = values.astype(NUMPY_DTYPES["bf16"]).view(np.uint16)
    np.testing.assert_array_equal(apply(library["f32_to_bf16"], values, np.uint16), expected)
