"""Products by integer dot products: real runs on any device that has them, however slow, and races on the CPU.

Expected arrays have the activations rounded as the kernel rounds them, so that only the order of float32 sums differs.
"""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from dsv3c.compiler.formats.activations import quantize_rows
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.runtime.devices.vulkan import dots as device_dots
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.moe import MoeDown, MoeGateUp
from dsv3c.targets.calls.operands import View
from dsv3c.targets.cuda.dialect import CUDA
from dsv3c.targets.gpu.capabilities import COOPERATIVE_MATRIX, INTEGER_DOT
from dsv3c.targets.gpu.kernels import operands, variants
from dsv3c.targets.gpu.kernels.frame import Rows
from dsv3c.targets.gpu.kernels.parts import Part
from dsv3c.targets.gpu.kernels.units.dots import DOT
from dsv3c.targets.gpu.kernels.units.unit import K_TILE
from dsv3c.targets.gpu.source import source
from dsv3c.targets.vulkan import dots
from dsv3c.targets.vulkan.capabilities import VULKAN
from dsv3c.targets.vulkan.glsl import print_kernel
from dsv3c.targets.vulkan.spirv import compile_glsl
from tests.targets.cases.dense import normal
from tests.targets.gpu.matrix_cases import BOUND, expert_case, linear_case, product, spread
from tests.targets.gpu.op_tests import SUMS, arguments, groups
from tests.targets.gpu.shim.cuda import barriers, cuda_library, kernels
from tests.targets.gpu.shim.library import ORDERS, ShimFault
from tests.targets.op_tests import compare
from tests.targets.vulkan.modules import capabilities, named, validate

FORMATS = ("int8", "int8-g64", "int4-g32", "int4-g32-asym", "int4-g128", "int5-g32")
OTHERS = ("float32", "float16", "bfloat16", "fp8", "mxfp4", "nf4-g64")
SIZES = ((1, 17, 31), (65, 130, 129), (18, 64, 160))  # tokens, N, K
HALF_STEP = (0.5 + 2.0**-12) / 127  # of the largest magnitude of K_TILE values; more than a half, as division may err
# The instruction by its definition, in C++.
DEFINED = """[](uint a, uint b) {
    int sum = 0;
    for (int i = 0; i < 32; i += 8) sum += int(int8_t(a >> i)) * int(int8_t(b >> i));
    return sum;
}""".replace("\n", " ")
LEAST_SHARED = 16384  # maxComputeSharedMemorySize of every device


def by_groups(x):
    """x[..., K] as [..., groups, K_TILE], with zeros behind the end."""
    *leading, k = x.shape
    count = -(-k // K_TILE)
    padded = np.zeros((*leading, count * K_TILE), x.dtype)
    padded[..., :k] = x
    return padded.reshape(*leading, count, K_TILE)


def in_rows(found, k):
    """The inverse of `by_groups`."""
    *leading, count, width = found.shape
    return found.reshape(*leading, count * width)[..., :k].astype(np.float64)


def rounded(x):
    """The numbers of which activations x[..., K] become int8."""
    data, scale, _ = quantize_rows(x, K_TILE)
    return in_rows(by_groups(data.astype(np.float64)) * scale[..., None], x.shape[-1])


def largest(x):
    """Of each value of x[..., K], the largest magnitude among those that are rounded with it."""
    found = by_groups(abs(x))
    return in_rows(np.broadcast_to(found.max(-1, keepdims=True), found.shape), x.shape[-1])


def case(name, t, n, k, heads=1, view=None, x=None):
    """(spec, inputs, expected, (exact, |x| times |w|, largest of x times |w|)); x f32 [t, K']."""
    spec, inputs, x, weight = linear_case(name, t, n, k, heads, view, x)
    sides = product(x, weight), product(abs(x), abs(weight)), product(largest(x), abs(weight))
    return spec, inputs, {"y": product(rounded(x), weight)}, sides


CASES = {f"{name}-t{t}-n{n}-k{k}": case(name, t, n, k) for name in FORMATS for t, n, k in SIZES}
CASES |= {f"halves-{name}": case(name, 66, 33, 176) for name in ("int3-g16", "int2-g16-asym")}  # groups of half a step
CASES |= {f"heads-{name}": case(name, 20, 40, 64, heads=3) for name in ("int8", "int4-g32")}
CASES["view"] = case("int4-g32", 66, 20, 63, view=View(100, offset=9))
CASES["head-view"] = case("int8", 17, 40, 64, heads=3, view=View(3 * 96 + 7, offset=39, head_stride=96))
CASES["no-rows"] = case("int8", 0, 17, 32)
CASES |= {f"rows-of-all-sizes-{name}": case(name, 66, 33, 96, x=spread(66, 96)) for name in FORMATS}
CASES["largest"] = case("int4-g32-asym", 18, 20, 32, x=normal(18, 32) * np.float32(1e30))
EXPERTS = {
    f"{op.__name__}-{name}-t{t}": expert_case(op, name, t, rounded)
    for op in (MoeGateUp, MoeDown)
    for name, t in (("int8", 1), ("int8", 130), ("int4-g32", 17), ("int4-g32-asym", 100))
}

RACED = ("int4-g32-asym-t65-n130-k129", "int8-t65-n130-k129", "MoeDown-int8-t130")


def form(spec):
    (found,) = [form for form in variants(spec, VULKAN) if INTEGER_DOT in form.requires]
    return found


@pytest.fixture(scope="module")
def modules(dots_compiler, tmp_path_factory):
    """The module of a kernel."""
    folder, made = tmp_path_factory.mktemp("dots"), {}

    def module(spec):
        if spec not in made:
            made[spec] = compile_glsl("dots", print_kernel(form(spec).build()), folder / f"{len(made)}.spv")
        return made[spec]

    return module


@pytest.fixture(scope="module")
def run(modules, device):
    """Launch: the operands by role after it; `given` are those of another one that it shares."""
    if not device.dots:
        pytest.skip("the device has no integer dot products")

    def launch(spec, inputs, given=None):
        arrays = arguments((spec,), inputs) if given is None else given
        grid = [groups(extent, inputs["control"]) for extent in form(spec).grid]
        device.run(modules(spec).read_bytes(), [arrays[operand.role] for operand in operands(spec)], (*grid, 1))
        return arrays

    return launch


# --- which kernels have the form, and which devices are offered it


@pytest.mark.parametrize("name", FORMATS)
def test_few_rows_keep_float32_and_matrices_come_first(name):
    forms = variants(Linear(Rows(BOUND), 64, 128, WeightFormat.parse(name)), VULKAN)
    needs = [form.requires - {"subgroup-shuffle"} for form in forms]
    assert needs[-3:] == [{COOPERATIVE_MATRIX}, {INTEGER_DOT}, frozenset()]
    assert [form.most_rows for form in forms[-3:]] == [None] * 3
    assert not any(needs[:-3]) and all(form.most_rows for form in forms[:-3])


@pytest.mark.parametrize("name", OTHERS)
def test_weights_of_floats_have_no_such_form(name):
    spec = Linear(Rows(BOUND), 64, 128, WeightFormat.parse(name))
    assert not any(INTEGER_DOT in form.requires for form in variants(spec, VULKAN))


class Driver:
    """What `runtime.vulkan.dots` asks the package vulkan for, of a device that answers as told."""

    def __init__(self, extension, feature, accelerated):
        self._extensions = [SimpleNamespace(extensionName=device_dots.EXTENSION)] if extension else []
        self._answers = {
            "shaderIntegerDotProduct": feature,
            "integerDotProduct4x8BitPackedSignedAccelerated": accelerated,
        }

    def __getattr__(self, name):
        if not name.startswith("VkPhysicalDevice"):
            raise AttributeError(name)
        return lambda **fields: SimpleNamespace(structure=name, **fields)

    def vkEnumerateDeviceExtensionProperties(self, handle, layer):
        return self._extensions

    def _fill(self, handle, asked):
        for field, value in self._answers.items():
            setattr(asked.pNext, field, int(value))

    vkGetPhysicalDeviceFeatures2 = vkGetPhysicalDeviceProperties2 = _fill


@pytest.mark.parametrize(
    ("extension", "feature", "accelerated", "there", "offered"),
    [
        (True, True, True, True, True),
        (True, True, False, True, False),  # lavapipe
        (True, False, True, False, False),
        (False, True, True, False, False),
    ],
)
def test_only_devices_that_accelerate_them_are_offered_the_form(extension, feature, accelerated, there, offered):
    driver = Driver(extension, feature, accelerated)
    assert device_dots.has_dots(driver, None) == there
    assert device_dots.has_fast_dots(driver, None) == offered


def test_the_device_is_asked_for_the_extension_besides_other_wishes():
    asked = device_dots.with_dots(Driver(True, True, True), {"pNext": "others", "ppEnabledExtensionNames": ["one"]})
    assert asked["ppEnabledExtensionNames"] == ["one", device_dots.EXTENSION]
    assert (asked["pNext"].shaderIntegerDotProduct, asked["pNext"].pNext) == (1, "others")


def test_the_runtime_means_the_same_capability():
    assert device_dots.DOT == INTEGER_DOT


# --- their text and modules


def test_only_such_a_form_asks_for_the_extension():
    for each in variants(CASES["no-rows"][0], VULKAN):
        assert (dots.EXTENSION in print_kernel(each.build())) == (INTEGER_DOT in each.requires)


@pytest.mark.parametrize("name", ["view", "MoeGateUp-int4-g32-asym-t100"])
def test_shared_memory_is_what_every_device_has(name):
    text = print_kernel(form((CASES | EXPERTS)[name][0]).build())
    sizes = [4 * int(count) for count in re.findall(r"^shared (?:uint|float) \w+\[(\d+)\];$", text, re.M)]
    assert len(sizes) == 5 and sum(sizes) <= LEAST_SHARED


@pytest.mark.needs("spirv_val")
@pytest.mark.parametrize("name", [*(f"{name}-t65-n130-k129" for name in FORMATS), "MoeGateUp-int4-g32-asym-t100"])
def test_modules_are_valid_and_ask_for_integer_dot_products_alone(name, modules):
    path = modules((CASES | EXPERTS)[name][0])
    assert capabilities(path.read_bytes()) == named({INTEGER_DOT})
    assert validate(path)


# --- on the CPU, as C++


@pytest.fixture(scope="module")
def races(gpp):
    """(library, text): kernels of some cases, which fail where a barrier is missing."""
    functions = {f"dots_{i}": form((CASES | EXPERTS)[name][0]).build() for i, name in enumerate(RACED)}
    text = source(functions, CUDA).replace(f"{DOT}(", f"{DEFINED}(")
    return cuda_library(text, races=True), kernels(text)


@pytest.mark.parametrize("name", RACED)
def test_barriers_order_all_use_of_shared_memory_and_none_is_in_vain(name, races):
    (library, texts), function = races, f"dots_{RACED.index(name)}"
    spec, inputs, expected, *_ = (CASES | EXPERTS)[name]
    grid = [groups(extent, inputs["control"]) for extent in form(spec).grid]

    def launch(order, skipped=0):
        arrays = arguments((spec,), inputs)
        library.run(function, [arrays[operand.role] for operand in operands(spec)], (*grid, 1), ORDERS[order], skipped)
        compare(arrays, inputs, expected, SUMS)

    for order in ORDERS:
        launch(order)
    lines = barriers(texts[function])
    assert len(lines) == (3 if name in EXPERTS else 2)
    for line in lines:
        with pytest.raises((AssertionError, ShimFault)):
            for order in ORDERS:
                launch(order, line)


# --- on a device that has them


@pytest.mark.parametrize("name", CASES)
def test_matches_numpy_with_rounded_activations(name, run):
    spec, inputs, expected, _ = CASES[name]
    compare(run(spec, inputs), inputs, expected, SUMS)


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_match_numpy_with_rounded_activations(name, run):
    spec, inputs, expected = EXPERTS[name]
    compare(run(spec, inputs), inputs, expected, SUMS)


@pytest.mark.parametrize("name", [name for name in CASES if "t65" in name or "sizes" in name])
def test_the_error_is_bounded_by_half_a_step_of_each_activation(name, run):
    spec, inputs, _, (exact, size, step) = CASES[name]
    found = run(spec, inputs)["y"][: exact.size].reshape(exact.shape)
    error = abs(found - exact)
    assert (error <= HALF_STEP * step + SUMS * size).all()
    assert (error > 1e-4 * size).any()  # the activations were rounded


@pytest.mark.parametrize("value", [0, 1e-44, 1e-38, 1e-31])
def test_rows_of_zeros_and_of_what_has_no_inverse_give_zeros(value, run):
    spec, inputs, _, (exact, *_) = case("int4-g32-asym", 18, 20, 32)
    x = np.full((18, 32), value, np.float32)
    assert not run(spec, inputs | {"x": x})["y"][: exact.size].any()


def test_what_is_not_finite_stays_so_and_leaves_other_rows_as_they_were(run):
    spec, inputs, *_ = case("int4-g32", 20, 33, 96)
    before = run(spec, inputs)["y"][: 20 * 33].reshape(20, 33)
    x = inputs["x"].copy()
    x[3, 7], x[9, 95] = np.nan, np.inf
    found = run(spec, inputs | {"x": x})["y"][: 20 * 33].reshape(20, 33)
    assert not np.isfinite(found[[3, 9]]).any()
    others = np.delete(np.arange(20), [3, 9])
    np.testing.assert_array_equal(found[others], before[others])


def test_parts_of_a_weight_write_only_their_own_columns(run):
    spec, inputs, expected, _ = case("int4-g32-asym", 20, 80, 64)
    arrays = arguments((spec,), inputs)
    for part in (Part(spec, 0, 3), Part(spec, 3, 2)):
        own = dict(arrays)
        for role in ("w.data", "w.scale", "w.zero"):
            each = arrays[role].size // 5
            own[role] = arrays[role][part.first * each : (part.first + part.count) * each].copy()
        run(part, inputs, own)
    compare(arrays, inputs, expected, SUMS)
