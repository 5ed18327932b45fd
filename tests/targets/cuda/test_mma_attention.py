"""Attention in latent space on tensor cores: the CUDA C++ run on the CPU, instructions as the PTX ISA has them.

Expected arrays have the queries rounded as the kernel rounds them. Probabilities are rounded, too, relative to a
maximum that depends on the order of the slots, so what that may cost is allowed for.
"""

import numpy as np
import pytest

from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.targets.cuda.capabilities import CUDA as NVIDIA
from dsv3c.targets.cuda.dialect import CUDA
from dsv3c.targets.gpu.capabilities import MMA
from dsv3c.targets.gpu.kernels import operands, stages, variants
from dsv3c.targets.gpu.source import source
from tests.targets.cases.attention import absorbed_case, softmax
from tests.targets.gpu.op_tests import CASES as SPARSE
from tests.targets.gpu.op_tests import SUMS, arguments, groups
from tests.targets.gpu.shim.cuda import cuda_library
from tests.targets.gpu.shim.library import ORDERS

UNIT = 2.0**-8  # the largest relative error of a number rounded to bfloat16
# Contexts of the CPU kernels' tests; heads, kv_lora_rank, qk_rope_head_dim.
SIZES = {
    "first": (3, 64, 16),
    "c17": (16, 512, 64),
    "c300": (3, 128, 16),
    "prefill": (17, 128, 64),
    "two": (33, 48, 32),
    "one": (8, 80, 16),
}


def rounded(x):
    return x.astype(NUMPY_DTYPES["bf16"]).astype(np.float64)


def case(spec, inputs, *_):
    """(spec, inputs, expected, largest error that rounded probabilities explain)."""
    rank, size, cache = spec.paging.rank, spec.paging.page_size, inputs["cache"]
    query = rounded(np.concatenate([inputs["q_latent"], inputs["q_pe"]], -1))
    expected, error = [], []
    for t, position in enumerate(inputs["positions"]):
        seen = inputs["chosen"][t, : position + 1] if "chosen" in inputs else np.arange(position + 1)
        pages = inputs["page_table"][inputs["sequence"][t]]
        latent = cache[pages[seen // size] * size + seen % size].astype(np.float64)
        probabilities = softmax(query[t] @ latent.T * spec.scale)
        expected.append(probabilities @ latent[:, :rank])
        error.append(probabilities @ abs(latent[:, :rank]) * UNIT)
    return spec, inputs, np.array(expected), np.array(error)


CASES = {context: case(*absorbed_case(context, *size, "bf16")) for context, size in SIZES.items()}
CASES |= {
    name.replace("-", "_"): case(*SPARSE[name]) for name in ("sparse-bf16-long", "sparse-bf16-all", "sparse-parts")
}


def forms(stage):
    """The form for short steps and that for all: of attention those on tensor cores."""
    found = variants(stage, NVIDIA)
    fast = [form for form in found if MMA in form.requires]
    return (fast or found)[:2]


def functions():
    return {
        f"{context}_{type(stage).__name__}_{place}": form.build()
        for context, (spec, *_) in CASES.items()
        for stage in stages(spec)
        for place, form in enumerate(forms(stage))
    }


pytestmark = pytest.mark.thorough  # a minute and more of g++


@pytest.fixture(scope="module")
def text():
    return source(functions(), CUDA)


@pytest.fixture(scope="module")
def library(gpp, text):
    return cuda_library(text)


def run(library, context, place, order):
    """y of the forms at `place`: short steps, or steps of any length."""
    spec, inputs, expected, _ = CASES[context]
    arrays = arguments(stages(spec), inputs)
    arrays["y"][:] = np.nan
    for stage in stages(spec):
        form = forms(stage)[place]
        grid = [groups(extent, inputs["control"]) for extent in form.grid]
        if 0 in [extent.times for extent in form.grid]:
            continue  # nothing to merge
        in_order = [arrays[operand.role] for operand in operands(stage)]
        name = f"{context}_{type(stage).__name__}_{place}"
        library.run(name, in_order, (*grid, *[1] * (3 - len(grid))), ORDERS[order])
    return arrays["y"][: expected.size].reshape(expected.shape)


@pytest.mark.parametrize("order", ["forward", "reverse"])
@pytest.mark.parametrize("place", [0, 1], ids=["parts", "whole"])
@pytest.mark.parametrize("context", CASES)
def test_matches_numpy_but_for_rounded_probabilities(context, place, order, library):
    spec, inputs, expected, error = CASES[context]
    if place == 0 and len(inputs["positions"]) > forms(stages(spec)[0])[0].most_rows:
        place = 1
    found = run(library, context, place, order)
    np.testing.assert_array_less(abs(found - expected), error + SUMS)


def test_no_element_of_shared_memory_is_used_without_a_barrier_between(gpp, text):
    races = cuda_library(text, races=True)
    for context in ("c17", "c300", "sparse_parts"):
        _, _, expected, error = CASES[context]
        for place in (0, 1):
            assert (abs(run(races, context, place, "shuffled") - expected) <= error + SUMS).all()


@pytest.mark.parametrize(("rank", "d", "element"), [(64, 16, "f32"), (24, 16, "bf16"), (64, 8, "bf16")])
def test_caches_that_are_no_whole_fragments_have_no_such_form(rank, d, element):
    spec, *_ = absorbed_case("first", 2, rank, d, element)
    assert not any(MMA in form.requires for form in variants(stages(spec)[0], NVIDIA))
