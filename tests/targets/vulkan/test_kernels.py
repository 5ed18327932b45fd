"""GPU kernels on a Vulkan device against what the CPU kernels' tests expect, with float32 activations."""

import shutil
import subprocess

import numpy as np
import pytest

from dsv3c.targets.cpu.kernels.moe import MoeDown, MoeGateUp
from dsv3c.targets.cpu.kernels.rope import RopeTable
from dsv3c.targets.gpu.kernels import operands, stages, supports, variants
from dsv3c.targets.gpu.kernels.frame import Extent, Rows
from dsv3c.targets.vulkan.glsl import print_kernel
from dsv3c.targets.vulkan.spirv import ENVIRONMENT, compile_glsl
from tests.targets.cpu.harness import aligned, compare
from tests.targets.cpu.test_attention_kernels import CASES as ATTENTION
from tests.targets.cpu.test_dense_kernels import CASES as DENSE
from tests.targets.cpu.test_dense_kernels import control as control_of
from tests.targets.cpu.test_dense_kernels import dequantized
from tests.targets.cpu.test_moe_kernels import CASES as MOE

CASES = {name: case for name, case in (DENSE | MOE | ATTENTION).items() if supports(case[0])}
SUMMED = {"x", "q_latent"}
SUMS = 1e-5  # sums of K products are added in another order than the expected ones


def angles_case():
    """A rotary table at all sizes of angles, up to the last position of a context of a million tokens."""
    positions = np.array([0, 1, 2, 3, 7, 100, 4095, 77777, 163839, 999999, 1048575], np.int32)
    inv_freq = np.concatenate([1.7 ** -np.arange(50), np.linspace(0.2, 1, 14)]).astype(np.float32)
    angles = (positions[:, None].astype(np.float32) * inv_freq).astype(np.float64)
    y = np.concatenate([np.cos(angles), np.sin(angles)], -1)
    inputs = {"control": control_of(positions.size), "positions": positions, "inv_freq": inv_freq}
    return RopeTable(Rows(18), 128, 1.0), inputs, {"y": y}, 3e-7


CASES["angles"] = angles_case()


def with_float_activations(inputs, spec):
    """The inputs with activations that a case has as int8 put back into float32, which is exact."""
    if "x.data" not in inputs:
        return inputs
    x = dequantized(inputs["x.data"], inputs["x.scale"], spec.weight.act_group)
    width = {MoeGateUp: "d", MoeDown: "i"}.get(type(spec), "k")
    kept = {role: array for role, array in inputs.items() if not role.startswith("x.")}
    return kept | {"x": np.ascontiguousarray(x[..., : getattr(spec, width)].astype(np.float32))}


def arguments(kernels, inputs):
    """The operands of all kernels by role in their own types; what no input fills has values that none writes."""
    arrays = {}
    for operand in dict.fromkeys(operand for kernel in kernels for operand in operands(kernel)):
        dtype = {"bf16": np.uint16, "f16": np.float16, "f32": np.float32, "i32": np.int32}.get(operand.dtype, np.uint8)
        given = inputs.get(operand.role)
        array = aligned(given.size if operand.size is None else operand.size, dtype)
        if given is not None:
            array[: given.size] = np.ascontiguousarray(given).reshape(-1).view(dtype)
        arrays[operand.role] = array
    return arrays


def groups(extent, control):
    """Workgroups along one axis for this control buffer, as a runtime computes them from the JSON."""
    times, index, tile, most = extent.to_json()
    count = -(-times * (1 if index is None else int(control[index])) // tile)
    return count if most is None else min(count, most)


def chosen(spec, count):
    """The variants that may run `count` rows."""
    return [variant for variant in variants(spec) if variant.most_rows is None or count <= variant.most_rows]


@pytest.mark.parametrize("name", CASES)
def test_matches_numpy(name, glslc, device, tmp_path):
    """Every form that may serve the rows of the case, so that the one for many is tried with few, too."""
    spec, inputs, expected, tolerance = CASES[name]
    inputs, kernels = with_float_activations(inputs, spec), stages(spec)
    control = inputs["control"]
    forms = [chosen(kernel, control[variants(kernel)[0].rows.index]) for kernel in kernels]
    for number in range(max(map(len, forms))):
        arrays = arguments(kernels, inputs)
        for kernel, possible in zip(kernels, forms, strict=True):
            variant = possible[min(number, len(possible) - 1)]
            spirv = compile_glsl(name, print_kernel(variant.build()), tmp_path / "kernel.spv").read_bytes()
            grid = [groups(extent, control) for extent in variant.grid]
            used = [arrays[operand.role] for operand in operands(kernel)]
            device.run(spirv, used, (*grid, *[1] * (3 - len(grid))))
        compare(arrays, inputs, expected, max(tolerance, SUMS) if SUMMED & inputs.keys() else tolerance)


@pytest.mark.parametrize("name", ["linear-int4-g32-asym-t5-n15-k31", "linear-float16-t17-n272-k160", "rope-table"])
def test_modules_are_valid_and_ask_for_no_feature(name, glslc, tmp_path):
    """spirv-val accepts them, and the only capability they name is Shader, which every device has."""
    if shutil.which("spirv-val") is None:
        pytest.skip("no spirv-val (Debian package spirv-tools)")
    for number, variant in enumerate(variants(CASES[name][0])):
        path = compile_glsl(name, print_kernel(variant.build()), tmp_path / f"{number}.spv")
        subprocess.run(["spirv-val", "--target-env", ENVIRONMENT, str(path)], check=True)
        assert capabilities(path.read_bytes()) == {1}


def capabilities(spirv):
    """Operands of the instructions OpCapability (17) of a module; they come first."""
    words = np.frombuffer(spirv, "<u4")
    at, found = 5, set()
    while words[at] & 0xFFFF == 17:
        found.add(int(words[at + 1]))
        at += int(words[at] >> 16)
    return found


def test_extents_round_up_and_are_capped():
    extent = Extent(3, Rows(18, index=1, multiplier=2), tile=4, most=9)
    control = np.array([5, 2, *[0] * 14], np.int32)
    assert (extent.maximum, groups(extent, control)) == (9, 3)
    assert groups(Extent(7), control) == 7
