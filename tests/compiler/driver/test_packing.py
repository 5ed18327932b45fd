from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.compiler.checkpoint.errors import NonFiniteWeightError
from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import TensorType, Value
from dsv3c.compiler.driver import machine, packing, pipeline, weights
from dsv3c.compiler.driver.packing import Kernels
from dsv3c.compiler.formats import rows16
from dsv3c.compiler.formats.quant import OutOfRange, quantize
from dsv3c.compiler.formats.table import FORMATS, WeightFormat
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.devices.cpu.features import cpu_flags
from dsv3c.targets.cpu.rounding import takes
from tests.checkpoints import tiny_config, write_checkpoint, write_safetensors

Array = Any
DTYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
SHOWN = ["int8", "int4-g32", "int4-g32-asym", "int3-g64", "int5-g16", "int2-tensor-asym", "int6-channel-asym"]
TAKEN = [name for name, format in FORMATS.items() if takes(format)]
SIZES = [(16, 64), (17, 40), (1, 1), (48, 257), (32, 704)]
pytestmark = pytest.mark.skipif(not machine.levels(cpu_flags()), reason="no level of ours runs on this CPU")


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "WORTH", 1)


KERNELS = Kernels(dict.fromkeys(FORMATS.values(), 1))  # compiled once for all tests


def stored(value: Value, format: str) -> Value:
    return ops.apply("pack", (ops.apply("quantize", (value,), {"format": format}),), {"layout": "rows16"})


def param(name: str, *shape: int) -> Value:
    return ops.leaf("param", name, TensorType("f32", shape))


def packed(w: Array, name: str, kernels: Kernels = KERNELS) -> dict[str, Array] | None:
    made = kernels.pack(stored(param("w", *w.shape), name), lambda leaf: w)
    return None if made is None else made.components


def assert_as_numpy(w: Array, name: str) -> None:
    """Bytes, or the same error."""
    format = FORMATS[name]
    try:
        expected = rows16.pack(quantize(w, format), format)
    except OutOfRange:
        with pytest.raises(OutOfRange):
            packed(w, name)
        return
    found = packed(w, name)
    assert found is not None or (format.grouping.per_tensor and w.shape[-2] % 16)
    for role, array in (found or expected).items():
        assert array.tobytes() == expected[role].tobytes(), role


def awkward(n: int, k: int, dtype: Any) -> Array:
    """Normal numbers, among them groups of zeros of both signs, ties, lopsided ranges, and numbers so small that their
    scale has few bits in float16 or none."""
    rng = np.random.default_rng(n * 1000 + k)
    w = rng.standard_normal((n, k)).astype(np.float32) * 0.02
    w[::5] = 0
    w[1::5] = -0.0
    w[2::5] = rng.integers(-8, 8, w[2::5].shape) / 2
    w[3::5] = np.abs(w[3::5]) * np.where(rng.random((len(w[3::5]), 1)) < 0.5, -1, 1) * 2.0 ** rng.integers(-24, 8)
    w[4::10] *= np.float32(2.0) ** rng.integers(-30, 0, w[4::10].shape)
    return w.astype(dtype)


def check(name: str, element: str) -> None:
    for size in SIZES:
        assert_as_numpy(awkward(*size, DTYPES[element]), name)


@pytest.mark.parametrize("element", DTYPES)
@pytest.mark.parametrize("name", SHOWN)
def test_a_kernel_writes_the_bytes_that_numpy_writes(name: str, element: str) -> None:
    check(name, element)


@pytest.mark.thorough
@pytest.mark.parametrize("element", DTYPES)
@pytest.mark.parametrize("name", sorted(set(TAKEN) - set(SHOWN)))
def test_a_kernel_of_every_format_writes_the_bytes_that_numpy_writes(name: str, element: str) -> None:
    check(name, element)


def test_every_format_of_integers_has_a_kernel() -> None:
    assert [name for name in FORMATS if name.startswith("int")] == TAKEN


@settings(max_examples=150)
@given(
    st.sampled_from(["int8", "int4-g32", "int4-g32-asym", "int8-tensor"]),
    st.sampled_from(sorted(DTYPES)),
    st.integers(1, 40),
    st.integers(1, 80),
    st.data(),
)
def test_any_finite_numbers_become_the_bytes_that_numpy_writes(
    name: str, element: str, n: int, k: int, data: st.DataObject
) -> None:
    dtype = np.dtype(DTYPES[element])
    bits = np.random.default_rng(data.draw(st.integers(0, 2**32))).integers(0, 256, (n, k * dtype.itemsize), np.uint8)
    w = bits.view(dtype)
    most = data.draw(st.sampled_from([0.0, 1e-7, 1e-3, 1.0, np.inf]))
    with np.errstate(invalid="ignore"):
        wide = w.astype(np.float32)
        w = np.where(np.isfinite(wide) & (np.abs(wide) <= np.float32(most)), w, dtype.type(min(most, 0.37)))
    assert_as_numpy(w, name)


@pytest.mark.parametrize("name", ["int8", "int4-g32", "int4-tensor-asym"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_left_to_numpy(name: str, value: float) -> None:
    w = awkward(32, 64, np.float32)
    w[19, 37] = value
    assert packed(w, name) is None


def test_a_weight_too_large_for_its_scale_is_refused() -> None:
    w = np.zeros((16, 64), np.float32)
    w[3, 5] = 2e6
    with pytest.raises(OutOfRange):
        packed(w, "int4-g32")


@pytest.mark.parametrize("name", ["int8", "int4-g32", "int3-g64"])
def test_all_levels_write_the_same_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for level in machine.levels(cpu_flags()):
        monkeypatch.setattr(packing, "levels", lambda flags, level=level: [level])
        found = packed(awkward(33, 200, ml_dtypes.bfloat16), name, Kernels({FORMATS[name]: 1}))
        expected = packed(awkward(33, 200, ml_dtypes.bfloat16), name)
        if found is None:
            assert level.matrix
            continue
        assert expected is not None
        assert {role: array.tobytes() for role, array in found.items()} == {
            role: array.tobytes() for role, array in expected.items()
        }


def test_without_a_level_of_ours_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "levels", lambda flags: [])
    assert packed(np.ones((16, 64), np.float32), "int8", Kernels({FORMATS["int8"]: 1})) is None


def test_no_kernel_is_compiled_for_few_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "WORTH", 16 * 64 + 1)
    monkeypatch.setattr(packing, "compiled", lambda *_: pytest.fail("compiled"))
    recipe = stored(param("w", 16, 64), "int8")
    assert Kernels.of([recipe]).pack(recipe, lambda leaf: np.ones((16, 64), np.float32)) is None


def several(name: str) -> tuple[list[Value], dict[str, Array]]:
    """Recipes with parts that are joined, cut, turned and multiplied, and their tensors."""
    tensors = {
        "a": awkward(32, 96, ml_dtypes.bfloat16),
        "b": awkward(48, 96, ml_dtypes.bfloat16),
        "c": awkward(7, 96, np.float16),
    }
    a, b, c = (param(leaf, *w.shape) for leaf, w in tensors.items())

    def op(name: str, *inputs: Value, **attrs: Any) -> Value:
        return ops.apply(name, inputs, attrs)

    heads = op("reshape", b, shape=(3, 16, 96))
    stack = op("concat", op("reshape", a, shape=(2, 16, 96)), heads, axis=0)
    weights = [
        op("concat", a, b, axis=0),
        op("concat", a, op("slice", b, axis=0, start=3, stop=14), axis=0),
        op("transpose", op("slice", heads, axis=1, start=0, stop=8), axes=(0, 2, 1)),
        op("slice", heads, axis=1, start=8, stop=16),
        stack,
        op("mul", c, ops.const(0.3)),
    ]
    return [stored(weight, name) for weight in weights], tensors


@pytest.mark.parametrize("name", ["int8", "int4-g32-asym", "int4-tensor"])
def test_what_recipes_move_is_read_as_it_is_stored_and_nothing_else(name: str, tmp_path: Path) -> None:
    recipes, tensors = several(name)
    named = {f"recipe{i}": recipe for i, recipe in enumerate(recipes)}
    file, asked = weights.lay_out(named), list[str]()

    def read(leaf: str, expert: int | None) -> Array:
        asked.append(leaf)
        return tensors[leaf].astype(np.float32)

    kernels = Kernels.of(recipes, lambda leaf, expert: tensors[leaf])
    for place, own in (("numpy", None), ("kernels", kernels)):
        asked.clear()
        with weights.writing(file, tmp_path / place, read, lambda n: None, kernels=own) as writer:
            writer.write_rest()
    assert (tmp_path / "kernels").read_bytes() == (tmp_path / "numpy").read_bytes()
    assert name == "int4-tensor" or asked == ["c"]  # one scale for seven rows is left to numpy


def test_tensors_that_are_read_in_codes_are_left_to_numpy() -> None:
    recipe = stored(param("w", 16, 64), "int8")
    kernels = Kernels.of([recipe], lambda *_: pytest.fail("read"), frozenset({"w"}))
    assert kernels.pack(recipe, lambda leaf: pytest.fail("read")) is None


def test_what_is_made_of_the_tensors_is_rounded_once_they_are_read_through_it(tmp_path: Path) -> None:
    recipes, tensors = several("int4-g32")
    file = weights.lay_out({"w": recipes[0]})
    written = []
    for kernels in (None, Kernels.of(recipes, lambda leaf, expert: tensors[leaf])):
        path = tmp_path / str(len(written))
        with weights.writing(
            file, path, lambda leaf, _: tensors[leaf].astype(np.float32), lambda n: None, kernels=kernels
        ) as writer:
            writer.read_through(lambda read: lambda leaf, expert: read(leaf, expert) * np.float32(0.3))
            writer.write_rest()
        written.append(path.read_bytes())
    assert written[0] == written[1]


@pytest.fixture
def no_switching() -> Iterator[None]:
    """A thread runs until it lets go of the interpreter."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("no_switching")
def test_other_threads_run_while_a_kernel_does() -> None:
    w, seen, kernels = np.ones((1 << 12, 1 << 12), np.float32), list[bool](), Kernels(KERNELS.weights)
    kernel, within = packing.compiled(FORMATS["int8"], "f32"), threading.Event()
    assert kernel is not None

    def watched(*addresses: Any) -> None:
        within.set()
        kernel(*addresses)
        within.clear()

    kernels._built[FORMATS["int8"], "f32"] = watched
    # Once will do: on a busy machine this thread may come too late for a kernel.
    for _ in range(100):
        thread = threading.Thread(target=packed, args=(w, "int8", kernels))
        thread.start()
        while thread.is_alive() and not any(seen):
            time.sleep(0.0001)
            seen.append(within.is_set())
        thread.join()
        if any(seen):
            return
    pytest.fail("nothing else ran")


def tiny(tmp_path: Path) -> Path:
    """The folder of a checkpoint in bfloat16."""
    write_checkpoint(tmp_path / "checkpoint", tiny_config(), dtype="bfloat16")
    return tmp_path / "checkpoint"


def weights_of(checkpoint: Path, out: Path) -> bytes:
    pipeline.compile_checkpoint(checkpoint, out, CompileOptions(quant="int4-g32"))
    return (out / "weights.safetensors").read_bytes()


def test_a_compilation_rounds_by_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels_for_this_cpu_alone: None
) -> None:
    checkpoint, built, compiled = tiny(tmp_path), list[tuple[str, str]](), packing.compiled

    def noted(format: WeightFormat, element: str) -> packing.Kernel | None:
        built.append((format.name, element))
        return compiled(format, element)

    monkeypatch.setattr(packing, "compiled", noted)
    by_kernel = weights_of(checkpoint, tmp_path / "kernel")
    assert sorted(built) == [("int4-g32", "bf16"), ("int8", "bf16")]
    monkeypatch.setattr(packing, "compiled", lambda *_: None)
    assert weights_of(checkpoint, tmp_path / "numpy") == by_kernel


def test_a_weight_of_a_checkpoint_that_is_not_finite_is_named(tmp_path: Path, kernels_for_this_cpu_alone: None) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    tensors = write_checkpoint(tmp_path / "checkpoint", tiny_config(), dtype="bfloat16")
    tensors[name][3, 7] = np.nan
    write_safetensors(tmp_path / "checkpoint" / "model.safetensors", tensors)
    with pytest.raises(NonFiniteWeightError, match=name):
        weights_of(tmp_path / "checkpoint", tmp_path / "out")


def test_threads_write_what_one_does() -> None:
    w = [awkward(64, 256, ml_dtypes.bfloat16) * ml_dtypes.bfloat16(i + 1) for i in range(8)]
    expected = [rows16.pack(quantize(each, FORMATS["int4-g32"]), FORMATS["int4-g32"])["data"].tobytes() for each in w]
    kernels = Kernels({FORMATS["int4-g32"]: 1})
    wrong = list[int]()

    def work(start: int) -> None:
        for i in (*range(start, 8), *range(start)):
            found = packed(w[i], "int4-g32", kernels)
            if found is None or found["data"].tobytes() != expected[i]:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
