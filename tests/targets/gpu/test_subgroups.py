"""Exchanges and reductions by every strategy and width of subgroups, run on the CPU with races as faults."""

import numpy as np
import pytest
from tvm.script.ir_builder import tirx as T

from dsv3c.targets.calls.operands import CONTROL, Operand
from dsv3c.targets.cuda.capabilities import CUDA as NVIDIA
from dsv3c.targets.cuda.dialect import CUDA
from dsv3c.targets.gpu.capabilities import SUBGROUP_32, SUBGROUP_SHUFFLE
from dsv3c.targets.gpu.kernels import variants
from dsv3c.targets.gpu.kernels.frame import THREADS, Extent, Rows, add, local, store
from dsv3c.targets.gpu.kernels.subgroups import RUN, RUNS, SUBGROUP_SIZE, Runs, forms, larger
from dsv3c.targets.gpu.source import source
from dsv3c.targets.metal.capabilities import METAL
from dsv3c.targets.vulkan.capabilities import VULKAN
from tests.targets.gpu.op_tests import CASES
from tests.targets.gpu.shim.cuda import cuda_library
from tests.targets.gpu.shim.library import ORDERS

OPERANDS = (
    CONTROL,
    Operand("x", "f32", THREADS),
    Operand("sums", "f32", 2 * THREADS),
    Operand("best", "i32", THREADS),
    Operand("few", "i32", THREADS),
    Operand("scattered", "f32", 2 * THREADS),
)
SUMS = 8  # that a thread has, to be scattered over its run
COUNT = 37  # threads that have anything, of a reduction of few
WIDTHS = (4, 8, 16, 32, 64, 128)
NAMES = ("shuffled", *(f"wide_{width}" for width in WIDTHS), "shared")


def emit(exchange, buffers, _, thread):
    """Twice each, as kernels reduce in loops."""
    x, total = T.bind(buffers["x"][thread]), local(1)
    sums, pairs = Runs(exchange, thread, at_once=SUMS // 2), Runs(exchange, thread, ("float32", "int32"))
    with T.serial(0, 2) as turn:
        store(total, 0, sums.reduced(x, add))
        store(buffers["sums"], turn * THREADS + thread, total[0])
        store(buffers["best"], thread, pairs.of_all((x, thread), larger)[1])
        pairs.renew_all()
        mine = T.bind(T.Select(thread < COUNT, x, T.float32(-1e30)))
        store(buffers["few"], thread, pairs.of_all((mine, thread), larger, COUNT)[1])
        pairs.renew_all()
    for turn in range(2):
        products = [T.bind(x * T.float32(turn * SUMS + i)) for i in range(SUMS)]
        store(buffers["scattered"], thread + turn * THREADS, sums.scattered(products))
        sums.renew_run()


@pytest.fixture(scope="module")
def library(gpp):
    """The kernel by every strategy; that for any width with each of them in place of the device's."""
    shuffled, partly, shared = forms(OPERANDS, (Extent(1),), Rows(1), emit)
    text = source({"shuffled": shuffled.build(), "shared": shared.build()}, CUDA)
    for width in WIDTHS:
        text += source({f"wide_{width}": partly.build()}, CUDA).replace(f"{SUBGROUP_SIZE}()", str(width))
    return cuda_library(text, races=True)


def run(library, name, order, x):
    sums = np.zeros((2, THREADS), np.float32)
    best, few = np.zeros(THREADS, np.int32), np.zeros(THREADS, np.int32)
    scattered = np.zeros((2, RUNS, RUN), np.float32)
    library.run(name, [np.zeros(16, np.int32), x, sums, best, few, scattered.ravel()], (1, 1, 1), ORDERS[order])
    return sums, best, few, scattered


@pytest.fixture
def x():
    values = np.random.default_rng(5).standard_normal(THREADS).astype(np.float32)
    values[[9, 70, 100]] = 7  # equals, in three runs
    return values


def tree(x):
    """The sum as the module says that it is made."""
    a, b, c, d = run_sums(x)
    return (a + b) + (c + d)


def run_sums(x):
    runs = x.reshape(-1, RUN)
    for mask in (16, 8, 4, 2, 1):
        runs = runs[:, :mask] + runs[:, mask : 2 * mask]
    return runs[:, 0]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", NAMES)
def test_every_thread_gets_the_same_bits_whatever_the_strategy(name, order, library, x):
    sums, best, few, scattered = run(library, name, order, x)
    np.testing.assert_array_equal(sums, tree(x))
    np.testing.assert_array_equal(best, 9)
    np.testing.assert_array_equal(few, 9)
    each = [run_sums(x * np.float32(i)) for i in range(2 * SUMS)]
    expected = np.repeat(np.array(each).reshape(2, SUMS, RUNS).swapaxes(1, 2), RUN // SUMS, axis=-1)
    np.testing.assert_array_equal(scattered, expected)


@pytest.mark.parametrize("place", [0, 31, 32, 36, 127])
def test_the_largest_is_found_wherever_it_is(place, library, x):
    x[place] = 9
    for name in NAMES:
        _, best, few, _ = run(library, name, "forward", x)
        assert set(best) == {place} and set(few) == {place if place < COUNT else 9}


def test_targets_compile_the_forms_that_their_devices_take():
    """One where all devices have subgroups of 32, two for Vulkan: with shuffles, and for any device."""
    spec = CASES["rms-t3-d15"][0]
    required = [[form.requires for form in variants(spec, table)] for table in (NVIDIA, METAL, VULKAN)]
    assert required == [[set()], [set()], [{SUBGROUP_SHUFFLE}, set()]]
    assert not any(SUBGROUP_32 in form.requires for form in variants(spec, NVIDIA))
