"""linear, head_linear, norm, rope, embedding, elementwise and quantize_rows on every level."""

import numpy as np
import pytest

from tests.targets.cases.dense import CASES, linear_case
from tests.targets.op_tests import OpTests


class TestDenseKernels(OpTests):
    cases = CASES

    @pytest.fixture
    def backend(self, kernels):
        return kernels


@pytest.mark.parametrize(
    "name", ["int8", "int4-g32", "int4-g32-asym", "int5-g32", "int3-g16-asym", "int2-g16", "mxfp4"]
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
