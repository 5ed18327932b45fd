"""The MSL of every kernel, run as C++ by the shim: on the CPU, so nothing here is evidence about Apple's compiler."""

import pytest

from dsv3c.targets.gpu.source import source
from dsv3c.targets.metal import capabilities
from dsv3c.targets.metal.dialect import METAL
from tests.selection import selected
from tests.targets.gpu.op_tests import GpuOpTests, exact_forms
from tests.targets.gpu.shim.forms import Forms
from tests.targets.gpu.shim.library import ORDERS
from tests.targets.gpu.shim.metal import metal_library


@pytest.fixture(scope="module")
def forms(request):
    return Forms(TestMetal.capabilities, selected(request))


@pytest.fixture(scope="module")
def library(gpp, forms):
    return metal_library(source(forms.functions, METAL))


class TestMetal(GpuOpTests):
    capabilities = exact_forms(capabilities.METAL)

    @pytest.fixture(params=["forward", "reverse"])  # `make barriers` looks for races besides
    def runner(self, request, forms, library):
        def run(name, kernel, arrays, grid):
            library.run(forms.name(kernel), arrays, grid, ORDERS[request.param])

        return run
