"""Products with codes that stand for floats, on every level."""

import numpy as np
import pytest

from tests.targets.cases.dense import linear_case
from tests.targets.cases.float_codes import CASES
from tests.targets.op_tests import OpTests

# Every kernel with the codes that have no scale in the grid; of the others what takes codes apart in another way.
SHORT = ("mxfp4-every-code", "mxfp4-extremes", "mxfp4-MoeDown")
SHORT += ("nf4-g64-every-code", "nf4-g64-linear-t1", "nf4-g64-linear-t5", "nf4-g64-MoeGateUp")


class TestFloatCodeKernels(OpTests):
    cases = CASES

    def always(self):
        return (name for name in CASES if name.startswith("fp8") or name in SHORT)

    @pytest.fixture
    def backend(self, kernels):
        return kernels


def test_a_row_has_the_same_sums_alone_and_among_others(kernels_of_all_levels):
    """By level: the order of additions within it does not depend on the tile."""
    cases = {t: linear_case("fp8", t, 33, 417) for t in (1, 17)}
    for kernels in kernels_of_all_levels(cases):
        one, many = cases[1], cases[17]
        one[1]["x"] = many[1]["x"][:1]
        first, among = (kernels.run(*case[:2])["y"][:33] for case in (one, many))
        np.testing.assert_array_equal(first, among)
