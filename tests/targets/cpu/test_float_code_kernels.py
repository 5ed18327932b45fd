"""Products with codes that stand for floats, on every level."""

import numpy as np
import pytest

from tests.targets.cases.dense import control, linear_case
from tests.targets.cases.float_codes import ROUNDED as CASES
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


# One that is decoded in registers, tiles of every width, and one step and two.
COUNTS = (1, 2, 3, 4, 5, 6, 7, 31, 32, 33, 63, 64, 65, 66, 67, 70)


def products(kernels, spec, inputs, rows):
    """y of a linear for some rows of activations, one after the other."""
    arrays = kernels.run(spec, inputs | {"control": control(len(rows)), "x": rows})
    return arrays["y"][: len(rows) * spec.n].reshape(len(rows), spec.n)


@pytest.mark.parametrize(("n", "k"), [(33, 417), (15, 31)])
def test_a_row_has_the_same_sums_alone_and_among_others(n, k, kernels_of_all_levels):
    """By level: the order of additions within it does not depend on the tile, nor on when weights are decoded."""
    spec, inputs, *_ = case = linear_case("fp8", max(COUNTS), n, k, bound=max(COUNTS))
    for kernels in kernels_of_all_levels({"fp8": case}):
        rows = inputs["x"]
        alone = np.concatenate([products(kernels, spec, inputs, row[None]) for row in rows])
        for count in COUNTS:
            np.testing.assert_array_equal(products(kernels, spec, inputs, rows[:count]), alone[:count])
