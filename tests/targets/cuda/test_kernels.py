"""The CUDA C++ of every kernel, run as C++ by the shim: on the CPU. What nvcc makes of it is not run here."""

import numpy as np
import pytest
from tvm.script.ir_builder import tirx as T

from dsv3c.targets.calls.operands import CONTROL, Operand
from dsv3c.targets.cuda import capabilities
from dsv3c.targets.cuda.dialect import CUDA
from dsv3c.targets.gpu.kernels.frame import Extent, prim_func, shared, spread, store
from dsv3c.targets.gpu.source import source
from tests.selection import selected
from tests.targets.gpu.op_tests import GpuOpTests, exact_forms
from tests.targets.gpu.shim.cuda import barriers, cuda_library, kernels, parameters
from tests.targets.gpu.shim.forms import Forms
from tests.targets.gpu.shim.library import ORDERS


@pytest.fixture(scope="module")
def forms(request):
    return Forms(TestCuda.capabilities, selected(request))


@pytest.fixture(scope="module")
def library(gpp, forms):
    return cuda_library(source(forms.functions, CUDA))


class TestCuda(GpuOpTests):
    capabilities = exact_forms(capabilities.CUDA)

    @pytest.fixture
    def runner(self, forms, library):
        def run(name, kernel, arrays, grid):
            # The kernels' barriers are the same for all targets, and are tried in both orders for Metal.
            library.run(forms.name(kernel), arrays, grid, ORDERS["reverse"])

        return run


def mirrored():
    """y[i] = x[127 - i], through shared memory and one barrier."""

    def emit(buffers, groups, thread):
        space = shared(128)
        store(space, thread, buffers["x"][thread])
        T.evaluate(T.tvm_storage_sync("shared"))
        spread(128, thread, lambda i: store(buffers["y"], i, space[T.int32(127) - i]))

    return prim_func([CONTROL, Operand("x", "f32", 128), Operand("y", "f32", 128)], [Extent(1)], emit)


@pytest.mark.parametrize("order", ORDERS)
def test_a_missing_barrier_changes_the_result(gpp, order):
    text = source({"mirrored": mirrored()}, CUDA)
    library, x = cuda_library(text), np.arange(128, dtype=np.float32)

    def run(skipped):
        y = np.zeros_like(x)
        library.run("mirrored", [np.zeros(16, np.int32), x, y], (1, 1, 1), ORDERS[order], skipped)
        return y

    (line,) = barriers(kernels(text)["mirrored"])
    np.testing.assert_array_equal(run(0), x[::-1])
    assert (run(line) != x[::-1]).any()


def test_parameters_are_read_from_the_text():
    text = source({"mirrored": mirrored()}, CUDA)
    assert [name for _, name in parameters(kernels(text)["mirrored"])] == ["control", "x", "y"]
    assert {kind for kind, _ in parameters(text)} == {"int* __restrict__", "float* __restrict__"}
