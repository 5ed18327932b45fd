"""Products on tensor cores: the CUDA C++ run on the CPU, the instruction by what the PTX ISA says of its fragments.

Expected arrays have the factors rounded as the kernel rounds them, so that only the order of float32 sums differs.
"""

import numpy as np
import pytest

from dsv3c.compiler.formats import rows16
from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.compiler.formats.grids import NF4
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.cuda.capabilities import CUDA as NVIDIA
from dsv3c.targets.cuda.dialect import CUDA
from dsv3c.targets.gpu.capabilities import MMA
from dsv3c.targets.gpu.kernels import operands, variants
from dsv3c.targets.gpu.kernels.frame import Rows
from dsv3c.targets.gpu.kernels.parts import Part
from dsv3c.targets.gpu.source import source
from tests.targets.gpu.matrix_cases import BOUND, FORMATS, expert_cases, linear_case, linear_cases, product
from tests.targets.gpu.op_tests import SUMS, arguments, groups
from tests.targets.gpu.shim.cuda import cuda_library
from tests.targets.gpu.shim.library import ORDERS
from tests.targets.op_tests import compare

UNIT = 2.0**-8  # the largest relative error of a number rounded to bfloat16


def rounded(x):
    return x.astype(NUMPY_DTYPES["bf16"]).astype(np.float64)


def rounded_weight(spec, inputs, weight):
    """Numbers of NF4 and float16 are rounded, the first before their scales."""
    if spec.weight.element == "f16":
        return rounded(weight)
    if not isinstance(spec.weight.grid, NF4):
        return weight
    parts = {part: inputs[f"w.{part}"] for part in ("data", "scale")}
    stored = rows16.unpack(parts, spec.weight, spec.n, spec.k)
    scale = np.repeat(stored.scale, spec.weight.grouping.size, axis=-1).astype(np.float64)
    return (rounded(spec.weight.codes.values(stored.codes, None)) * scale)[..., : spec.k]


def case(name, t, n, k, heads=1, view=None):
    """(spec, inputs, expected, (exact, |x| times |w|))."""
    spec, inputs, x, weight = linear_case(name, t, n, k, heads, view)
    factors = rounded_weight(spec, inputs, weight)
    sides = product(x, weight), product(abs(x), abs(weight))
    return spec, inputs, {"y": product(rounded(x), factors)}, sides


CASES = linear_cases(case)
EXPERTS = expert_cases(rounded)
NAMES = {name: "mma_" + name.replace("-", "_") for name in (*CASES, *EXPERTS)}


def form(spec):
    (found,) = [form for form in variants(spec, NVIDIA) if form.requires]
    return found


def functions():
    """The kernel of every case by its name."""
    return {NAMES[name]: form(spec).build() for name, (spec, *_) in (CASES | EXPERTS).items()}


@pytest.fixture(scope="module")
def text():
    return source(functions(), CUDA)


@pytest.fixture(scope="module")
def library(gpp, text):
    return cuda_library(text)


def launch(spec, inputs):
    """What a launch takes: (operands by role, the same in order, grid)."""
    arrays = arguments((spec,), inputs)
    grid = [groups(extent, inputs["control"]) for extent in form(spec).grid]
    return arrays, [arrays[operand.role] for operand in operands(spec)], (*grid, 1)


def run(library, name, spec, inputs, order="forward"):
    arrays, in_order, grid = launch(spec, inputs)
    library.run(name, in_order, grid, ORDERS[order])
    return arrays


@pytest.mark.parametrize("order", ["forward", "reverse"])
@pytest.mark.parametrize("name", CASES)
def test_matches_numpy_with_rounded_factors(name, order, library):
    spec, inputs, expected, _ = CASES[name]
    compare(run(library, NAMES[name], spec, inputs, order), inputs, expected, SUMS)


@pytest.mark.parametrize("order", ["forward", "reverse"])
@pytest.mark.parametrize("name", EXPERTS)
def test_experts_match_numpy_with_rounded_factors(name, order, library):
    spec, inputs, expected = EXPERTS[name]
    compare(run(library, NAMES[name], spec, inputs, order), inputs, expected, SUMS)


@pytest.mark.parametrize("name", [name for name in CASES if "t65" in name])
def test_the_error_of_rounding_is_bounded_by_that_of_its_factors(name, library):
    spec, inputs, _, (exact, size) = CASES[name]
    found = run(library, NAMES[name], spec, inputs)["y"][: exact.size].reshape(exact.shape)
    both = 2 * UNIT + UNIT**2 if spec.weight.element == "f16" else UNIT
    error = abs(found - exact)
    assert (error <= (both + SUMS) * size).all()
    assert error.max() > 100 * SUMS * UNIT  # the factors were rounded


@pytest.mark.thorough
def test_no_element_of_shared_memory_is_used_without_a_barrier_between(gpp, text):
    library = cuda_library(text, races=True)
    for name in ("int4-g32-t18-n64-k160", "int8-t65-n130-k129", "float16-t65-n130-k129"):
        spec, inputs, expected, _ = CASES[name]
        compare(run(library, NAMES[name], spec, inputs, "shuffled"), inputs, expected, SUMS)
    for name, (spec, inputs, expected) in EXPERTS.items():
        compare(run(library, NAMES[name], spec, inputs, "shuffled"), inputs, expected, SUMS)


def test_parts_of_a_weight_write_only_their_own_columns(gpp):
    spec, inputs, expected, _ = case("bfloat16", 20, 80, 64)
    parts = [Part(spec, first, count) for first, count in ((0, 3), (3, 2))]
    library = cuda_library(source({f"part_{i}": form(part).build() for i, part in enumerate(parts)}, CUDA))
    arrays = arguments((spec,), inputs)
    for i, part in enumerate(parts):
        each = arrays["w.data"].size // 5
        own = arrays | {"w.data": arrays["w.data"][part.first * each : (part.first + part.count) * each].copy()}
        grid = [groups(extent, inputs["control"]) for extent in form(part).grid]
        library.run(f"part_{i}", [own[operand.role] for operand in operands(part)], (*grid, 1))
    compare(arrays, inputs, expected, SUMS)


def test_float32_weights_and_targets_without_the_capability_have_no_such_form():
    exact = Linear(Rows(BOUND), 64, 64, WeightFormat.parse("float32"))
    assert variants(exact, NVIDIA) and not any(form.requires for form in variants(exact, NVIDIA))
    assert not any(form.requires for form in variants(CASES["no-rows"][0]))


@pytest.mark.parametrize("name", FORMATS)
def test_few_rows_keep_float32_and_the_last_form_runs_on_any_device(name):
    spec = Linear(Rows(BOUND), 64, 128, WeightFormat.parse(name))
    forms = variants(spec, NVIDIA)
    assert [(form.most_rows, form.requires) for form in forms] == [
        (1, frozenset()), (16, frozenset()), (None, {MMA}), (None, frozenset()),
    ]  # fmt: skip
