"""linear, head_linear, norm, rope, embedding, elementwise and quantize_rows on every level."""

import numpy as np
import pytest

from tests.selection import shortlist
from tests.targets.cases.dense import CASES, linear_case
from tests.targets.op_tests import OpTests

# Formats that differ from others here in the size of a group or the number of planes alone: at one of both sizes.
ONCE = ("int8-g32", "int4-g64", "int4-g128", "int5-g64")
NARROW = ("int8-asym", "int6-g32", "int5-g16", "int4-tensor", "int3-g128")


class TestDenseKernels(OpTests):
    cases = CASES

    def always(self):
        left = (*(f"linear-{name}-t{t}-n272-k160" for name in ONCE for t in (1, 17, 18)),
                *(f"linear-{name}-t5-n33-k176" for name in NARROW))  # fmt: skip
        assert CASES.keys() > set(left)
        return (name for name in CASES if name not in left)

    @pytest.fixture
    def backend(self, kernels):
        return kernels


@pytest.mark.parametrize(
    "name",
    shortlist(
        ["int8", "int4-g32", "int4-g32-asym", "int5-g32", "int3-g16-asym", "int2-g16", "mxfp4"],
        ["int8", "int4-g32-asym", "int3-g16-asym", "mxfp4"],
    ),
)
def test_integer_formats_agree_bit_for_bit_between_levels_and_tiles(kernels_of_all_levels, name):
    one, many = linear_case(name, 1, 33, 160), linear_case(name, 17, 33, 160)
    for role in ("x.data", "x.scale", "x.sum"):
        one[1][role] = many[1][role][:1]
    results = []
    for kernels in kernels_of_all_levels({"one": one, "many": many}):
        results += [kernels.run(*case[:2])["y"][:33] for case in (one, many)]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
