"""GPU kernels on a Vulkan device, and what their SPIR-V modules ask of a device."""

import numpy as np
import pytest

from dsv3c.targets.gpu.capabilities import COOPERATIVE_MATRIX
from dsv3c.targets.gpu.kernels import variants
from dsv3c.targets.gpu.kernels.frame import Extent, Rows
from dsv3c.targets.vulkan.capabilities import VULKAN
from dsv3c.targets.vulkan.glsl import print_kernel
from dsv3c.targets.vulkan.spirv import compile_glsl, find_matrix_compiler
from tests.targets.gpu.op_tests import CASES, GpuOpTests, exact_forms, groups
from tests.targets.vulkan.modules import capabilities, named, validate


class TestVulkan(GpuOpTests):
    capabilities = exact_forms(VULKAN)

    @pytest.fixture
    def runner(self, shader_compiler, device, tmp_path):
        def run(name, kernel, arrays, grid):
            spirv = compile_glsl(name, print_kernel(kernel), tmp_path / "kernel.spv").read_bytes()
            device.run(spirv, arrays, grid)

        return run


NAMES = ["linear-int4-g32-asym-t5-n15-k31", "linear-float16-t17-n272-k160", "rope-table", "rms-t3-d15"]


@pytest.mark.needs("spirv_val")
@pytest.mark.parametrize("name", NAMES)
def test_modules_are_valid_and_ask_for_what_their_form_requires(name, shader_compiler, tmp_path):
    """spirv-val accepts them, and they name the capability Shader, which every device has, and what they require."""
    known = VULKAN if find_matrix_compiler() else VULKAN.without(COOPERATIVE_MATRIX)
    for number, variant in enumerate(variants(CASES[name][0], known)):
        path = compile_glsl(name, print_kernel(variant.build()), tmp_path / f"{number}.spv")
        validate(path)
        assert capabilities(path.read_bytes()) == named(variant.requires)


def test_extents_round_up_and_are_capped():
    extent = Extent(3, Rows(18, index=1, multiplier=2), tile=4, most=9)
    control = np.array([5, 2, *[0] * 14], np.int32)
    assert (extent.maximum, groups(extent, control)) == (9, 3)
    assert groups(Extent(7), control) == 7
