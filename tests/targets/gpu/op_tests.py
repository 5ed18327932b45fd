"""Tests of the GPU kernels for every GPU target: what the CPU kernels' tests expect, with float32 activations.

A target's tests subclass `GpuOpTests` with the `capabilities` whose forms are run, and a fixture `runner`: a function
(name, kernel, arrays, grid), which runs a PrimFunc on the operands `arrays`, flat and in order, and leaves their new
contents in them; grid: workgroups (x, y, z).
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from dsv3c.targets.calls.attention import MlaAbsorbed
from dsv3c.targets.calls.cache import Paging
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.moe import MoeDown, MoeGateUp
from dsv3c.targets.calls.rope import RopeTable
from dsv3c.targets.gpu.capabilities import NOTHING, SIMDGROUP_MATRIX, SUBGROUP_32, SUBGROUP_SHUFFLE, Capabilities
from dsv3c.targets.gpu.kernels import SPECS, operands, stages, variants
from dsv3c.targets.gpu.kernels.attention.indexer import Scores
from dsv3c.targets.gpu.kernels.frame import Rows
from dsv3c.targets.gpu.kernels.parts import Part, units, weight_role
from tests.targets.cases.attention import CASES as ATTENTION
from tests.targets.cases.attention import F32, attend, filled_cache, materialized_case, normal, place
from tests.targets.cases.dense import CASES as DENSE
from tests.targets.cases.dense import control as control_of
from tests.targets.cases.dense import dequantized
from tests.targets.cases.float_codes import CASES as FLOAT_CODES
from tests.targets.cases.moe import CASES as MOE
from tests.targets.cases.moe import moe_case, router_case
from tests.targets.cases.sparse import CASES as SPARSE
from tests.targets.gpu.sampling_cases import CASES as SAMPLING
from tests.targets.gpu.sparse_cases import CASES as MORE_SPARSE
from tests.targets.op_tests import Case, OpTests, aligned, compare, filled

DTYPES = {"bf16": np.uint16, "f16": np.float16, "f32": np.float32, "i32": np.int32}
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


def deep_case(contexts, pages, heads, rank, d, element):
    """mla_absorbed in a short step, with tables of `pages` pages of 16 slots: contexts are cut into parts."""
    positions, sequence, table, slots = place(contexts, 16, pages)
    paging = Paging(len(contexts), pages, 16, rank, d, element)
    cache = filled_cache(positions, sequence, table, slots, paging)
    q_latent, q_pe = normal(positions.size, heads, rank), normal(positions.size, heads, d, seed=1)
    query, scale = np.concatenate([q_latent, q_pe], -1), (rank + d) ** -0.5
    y = attend(query, cache, positions, sequence, table, 16, scale, rank)
    inputs = {"control": control_of(positions.size), "positions": positions, "sequence": sequence, "page_table": table}
    inputs |= {"cache": cache, "q_latent": q_latent, "q_pe": q_pe}
    return MlaAbsorbed(Rows(positions.size), heads, paging, scale), inputs, {"y": y}, F32


def more_cases():
    """What only these kernels find hard: more experts than threads, trees of which every thread takes part, more pairs
    of an expert than a tile has rows, more tokens of a sequence than see a block together."""
    for scoring in ("sigmoid", "softmax"):
        yield f"router-{scoring}-e256", router_case(3, 256, 8, 1, 1, scoring, "max", False)
        yield f"router-{scoring}-e256-groups", router_case(3, 256, 8, 8, 4, scoring, "top2", True)
        yield f"router-{scoring}-e64-groups", router_case(8, 64, 5, 8, 6, scoring, "top2", True)
        yield f"router-{scoring}-e32-groups", router_case(3, 32, 5, 4, 3, scoring, "max", False)
    for op in (MoeGateUp, MoeDown):
        yield f"{op.__name__}-int4-g32-t70", moe_case(op, "int4-g32", 70, 48, 33, 3, 2, 1, bound=70)
    yield "absorbed-parts-that-tokens-do-not-share-evenly", deep_case([(1000, 3)], 64, 5, 64, 16, "bf16")
    yield "absorbed-rows-that-share-words", deep_case([(700, 1), (1, 1)], 64, 1, 51, 10, "bf16")
    yield "absorbed-odd-rank", deep_case([(130, 2)], 64, 3, 51, 11, "bf16")
    yield "absorbed-odd-f32", deep_case([(130, 2)], 64, 2, 33, 7, "f32")
    yield "absorbed-128-heads", deep_case([(1000, 1)], 64, 128, 32, 8, "bf16")
    yield "absorbed-as-many-parts-as-threads", deep_case([(8000, 1)], 600, 4, 32, 8, "bf16")
    yield "absorbed-one-page", deep_case([(16, 1)], 1, 2, 32, 8, "bf16")
    yield "materialized-few-columns", materialized_case("ragged", 1, 24, 40, 64, 16, "f32", "float32")


ALL = DENSE | MOE | ATTENTION | SPARSE | SAMPLING | FLOAT_CODES
CASES = {name: case for name, case in ALL.items() if isinstance(case[0], SPECS)}
CASES |= {"angles": angles_case(), **dict(more_cases()), **MORE_SPARSE}
PARTED = (
    *("linear-int4-g32-asym-t1-n17-k129", "linear-int4-g32-asym-t18-n272-k160", "linear-float16-t5-n17-k129"),
    *("take-f16", "take-i8", "MoeGateUp-int4-g32-asym-t1", "MoeGateUp-bfloat16-t17", "MoeDown-int4-g32-t70"),
    "MoeGateUp-int8-wide",
)
IN_TURNS = ("topk-bf16-pages",)  # of one whole turn, one in part, and some that have no token


def with_float_activations(inputs, spec):
    """The inputs with activations that a case has as int8 put back into float32, which is exact."""
    if "x.data" not in inputs:
        return inputs
    x = dequantized(inputs["x.data"], inputs["x.scale"], spec.weight.grouping.activations)
    width = {MoeGateUp: "d", MoeDown: "i"}.get(type(spec), "k")
    kept = {role: array for role, array in inputs.items() if not role.startswith("x.")}
    return kept | {"x": np.ascontiguousarray(x[..., : getattr(spec, width)].astype(np.float32))}


def arguments(kernels, inputs):
    """The operands of all kernels by role in their own types; what no input fills has values that none writes."""
    listed = dict.fromkeys(operand for kernel in kernels for operand in operands(kernel))
    return filled(listed, inputs, lambda dtype: DTYPES.get(dtype, np.uint8))


def groups(extent, control):
    """Workgroups along one axis for this control buffer, as a runtime computes them from the JSON."""
    times, index, tile, most = extent.axis().to_json()
    count = -(-times * (1 if index is None else int(control[index])) // tile)
    return max(1, count if most is None else min(count, most))


def exact_forms(table):
    """What a target's devices have that changes nothing but the order of sums, as if not all had it, so that all forms
    are kept. Products with rounded factors have tests of their own."""
    return Capabilities(some=(table.always | table.some) & {SUBGROUP_32, SUBGROUP_SHUFFLE, SIMDGROUP_MATRIX})


def chosen(spec, control, capabilities=NOTHING):
    """The variants that may run the rows that the control buffer names."""
    forms = variants(spec, capabilities)
    count = control[forms[0].rows.index]
    return [form for form in forms if form.most_rows is None or count <= form.most_rows]


def codes(spec):
    """What the codes of its cache are."""
    paging = getattr(spec, "paging", None)
    return paging.element if paging and paging.coded else None


def decoding(spec):
    """What decides how its weights are taken apart: in products all of it; elsewhere, where the same is done to them,
    whether they are codes and have zeros of their own."""
    weight = getattr(spec, "weight", None)
    if weight is None:
        return ()
    if not isinstance(spec, Linear):
        return weight.element, weight.grouping.zero
    return type(weight.grid), weight.packings["rows16"], weight.grouping.zero, min(weight.grouping.size, 32)


@cache
def telling(capabilities):
    """Names of cases that together run every form of every kernel with every way to decode weights and every cache of
    codes: the first that does."""
    seen, names = set(), []
    for name, (spec, inputs, *_) in CASES.items():
        own = {
            (type(kernel).__name__, decoding(spec), codes(spec), form.most_rows, form.requires)
            for kernel in stages(spec)
            for form in chosen(kernel, inputs["control"], capabilities)
        }
        if own - seen:
            names.append(name)
        seen |= own
    return tuple(names)


def aligned_copy(array):
    copied = aligned(array.size, array.dtype)
    copied[:] = array
    return copied


def parts(whole):
    """The kernels for three parts of a weight, the last the smallest."""
    total = units(whole)
    each = -(-total // 3)
    return tuple(Part(whole, first, min(each, total - first)) for first in range(0, total, each))


def in_turns(spec):
    """The kernels of a choice with room for the scores of four tokens."""
    return stages(spec, 4 * 4 * Scores(spec, 0, 1).stride)


@dataclass(frozen=True)
class Launches:
    """runner: as the module says. capabilities: whose forms are run."""

    runner: Callable[..., None]
    capabilities: Capabilities

    def runs(self, name, case, kernels=None):
        """Operands after all stages of an operation, each in the form that serves the case, and in those for more."""
        inputs, kernels = with_float_activations(case.inputs, case.spec), kernels or stages(case.spec)
        control = inputs["control"]
        forms = [chosen(kernel, control, self.capabilities) for kernel in kernels]
        for number in range(max(map(len, forms))):
            arrays = arguments(kernels, inputs)
            for kernel, possible in zip(kernels, forms, strict=True):
                form = possible[min(number, len(possible) - 1)]
                self.launch(name, form, [arrays[operand.role] for operand in operands(kernel)], control)
            yield arrays

    def launch(self, name, form, used, control):
        grid = [groups(extent, control) for extent in form.grid]
        self.runner(name, form.build(), used, (*grid, *[1] * (3 - len(grid))))

    def tolerance(self, case):
        summed = SUMMED & with_float_activations(case.inputs, case.spec).keys()
        return max(case.tolerance, SUMS) if summed else case.tolerance


class GpuOpTests(OpTests):
    """Subclass it as `Test<Target>` with a fixture `runner`."""

    cases = CASES
    capabilities = NOTHING

    @pytest.fixture
    def backend(self, runner):
        return Launches(runner, self.capabilities)

    def always(self):
        return telling(self.capabilities)

    @pytest.mark.parametrize("name", PARTED)
    def test_parts_of_a_weight_give_together_what_the_whole_gives(self, name, backend):
        """Cut into three parts, in every form: what no part writes fails the comparison."""
        case = Case(*CASES[name])
        inputs, (whole, *rest) = with_float_activations(case.inputs, case.spec), stages(case.spec)
        role, total, control = weight_role(whole), units(whole), inputs["control"]
        for number in range(len(chosen(whole, control, self.capabilities))):
            arrays = arguments((whole, *rest), inputs)
            for kernel in (*parts(whole), *rest):
                forms = chosen(kernel, control, self.capabilities)
                used = []
                for operand in operands(kernel):
                    array = arrays[operand.role]
                    if isinstance(kernel, Part) and operand.role.partition(".")[0] == role:
                        first = array.size // total * kernel.first
                        array = aligned_copy(array[first : first + operand.size])
                    used.append(array)
                backend.launch(name, forms[min(number, len(forms) - 1)], used, control)
            compare(arrays, inputs, case.expected, backend.tolerance(case))

    @pytest.mark.parametrize("name", IN_TURNS)
    def test_steps_of_more_tokens_than_scratch_has_room_for_take_turns(self, name, backend):
        case = Case(*CASES[name])
        for arrays in backend.runs(name, case, in_turns(case.spec)):
            compare(arrays, case.inputs, case.expected, backend.tolerance(case))

    def test_every_form_of_every_kernel_is_run_by_some_case(self):
        """By kind of kernel, the bits of its weight, and the rows that a form is for and what it requires."""
        exist, run = defaultdict(set), defaultdict(set)
        for spec, inputs, *_ in CASES.values():
            for kernel in stages(spec):
                kind = (type(kernel).__name__, getattr(getattr(spec, "weight", None), "bits", None))
                used = chosen(kernel, inputs["control"], self.capabilities)
                exist[kind] |= {(form.most_rows, form.requires) for form in variants(kernel, self.capabilities)}
                run[kind] |= {(form.most_rows, form.requires) for form in used}
        assert run == exist
