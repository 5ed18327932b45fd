"""Each instruction that ARM kernels name computes its numpy meaning, on emulated CPUs that have it and on no other."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from tvm.script.ir_builder import tirx as T

from dsv3c.targets.arm.levels import LEVELS
from dsv3c.targets.cpu.intrinsics import DOT2, DOT4, MMLA
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.frame import Operand, prim_func
from dsv3c.targets.cpu.kernels.vector import exp, load, store
from tests.targets.arm import emulator
from tests.targets.cpu.test_intrinsics import N, dot2, dot4, unary
from tests.targets.libraries import build_library

pytestmark = pytest.mark.needs("arm", "arm_linker")


class Built(NamedTuple):
    library: Path
    calls: list[tuple[str, emulator.Arrays]]


def mmla(level: IsaLevel) -> Any:
    """acc i32 [2, 2], codes u8 [2, 8], x i8 [2, 8]."""

    def body(buffers: Mapping[str, Any]) -> None:
        codes = T.reinterpret("uint32x4", load(buffers["codes"], 0, 16))
        assert level.mmla is not None
        product = MMLA[level.mmla].emit(load(buffers["acc"], 0, 4), codes, load(buffers["x"], 0, 16))
        store(buffers["acc"], 0, product, 4)

    return prim_func((Operand("acc", "i32", 4), Operand("codes", "u8", 16), Operand("x", "i8", 16)), body)


def integers(shape: tuple[int, ...], x: tuple[int, ...], acc: tuple[int, ...]) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return {
        "acc": rng.integers(-(2**30), 2**30, acc).astype(np.int32),
        "codes": rng.integers(0, 256, shape).astype(np.uint8),
        "x": rng.integers(-127, 128, x).astype(np.int8),
    }


def given(level: IsaLevel) -> dict[str, tuple[str, dict[str, np.ndarray[Any, Any]]]]:
    """The kernel and its operands of each case."""
    rng = np.random.default_rng(1)
    drawn, extreme = integers((4, 4), (4,), (4,)), integers((4, 4), (4,), (4,))
    extreme["codes"][:] = 128 if DOT4[level.dot].signed else 255
    extreme["x"][:] = [-127, -127, 127, -127]
    cases = {"dot4": ("dot4", drawn), "dot4 of extremes": ("dot4", extreme)}
    if level.mmla:
        cases["mmla"] = ("mmla", integers((2, 8), (2, 8), (2, 2)))
    if level.dot2:
        pairs = {name: rng.standard_normal((4, 2)).astype(ml_dtypes.bfloat16) for name in "ab"}
        cases["dot2"] = ("dot2", {"acc": rng.standard_normal(4).astype(np.float32), **pairs})
    cases["exp"] = ("exp", {"x": np.linspace(-87, 88, N).astype(np.float32), "y": np.zeros(N, np.float32)})
    return cases


@pytest.fixture(scope="module")
def built(level: IsaLevel, tmp_path_factory: pytest.TempPathFactory) -> Built:
    functions = {"dot4": dot4(level), "exp": unary("f32", "f32", exp)}
    functions |= {"dot2": dot2(level)} if level.dot2 else {}
    functions |= {"mmla": mmla(level)} if level.mmla else {}
    library = build_library(functions, level, tmp_path_factory.mktemp(level.name) / "intrinsics.so")
    calls = [(name, {role: flat(array) for role, array in arrays.items()}) for name, arrays in given(level).values()]
    return Built(library, calls)


def flat(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As kernels take it: bfloat16 by its bits."""
    return (array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array).reshape(-1)


@pytest.fixture(scope="module")
def results(level: IsaLevel, built: Built, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, emulator.Arrays]:
    folder = tmp_path_factory.mktemp(level.name)
    found = emulator.call_kernels(emulator.CPUS[level.name], built.library, built.calls, folder)
    return dict(zip(given(level), found, strict=True))


def test_instructions_are_their_meaning(level: IsaLevel, results: Mapping[str, emulator.Arrays]) -> None:
    meanings = {"dot4": DOT4[level.dot].meaning}
    meanings |= {"mmla": MMLA[level.mmla].meaning} if level.mmla else {}
    for case, (name, arrays) in given(level).items():
        if name in meanings:
            np.testing.assert_array_equal(results[case]["acc"], meanings[name](*arrays.values()).reshape(-1), case)


def test_dot2_is_its_meaning(level: IsaLevel, results: Mapping[str, emulator.Arrays]) -> None:
    if level.dot2 is None:
        pytest.skip("no bfloat16 product at this level")
    arrays = given(level)["dot2"][1]
    expected = DOT2[level.dot2].meaning(*arrays.values())
    np.testing.assert_allclose(results["dot2"]["acc"], expected, rtol=0, atol=1e-6)


def test_exp(results: Mapping[str, emulator.Arrays]) -> None:
    exact = np.exp(results["exp"]["x"].astype(np.float64))
    assert np.abs(results["exp"]["y"] / exact - 1).max() < 2e-7


def test_a_level_is_an_illegal_instruction_below_it(level: IsaLevel, built: Built, tmp_path: Path) -> None:
    """Else the emulated CPUs would prove nothing about the levels that they do run."""
    lower = next((low.name for low, high in itertools.pairwise(LEVELS) if high.name == level.name), None)
    if lower is None:
        pytest.skip("every CPU of the architecture has the lowest level")
    with pytest.raises(emulator.Died) as died:
        emulator.call_kernels(emulator.CPUS[lower], built.library, built.calls, tmp_path)
    assert died.value.args[0] == -signal.SIGILL
