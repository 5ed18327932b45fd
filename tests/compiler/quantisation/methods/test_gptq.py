import numpy as np
import pytest

from dsv3c.compiler.errors import StatisticsError
from dsv3c.compiler.formats.float_rounding import nearest_float
from dsv3c.compiler.formats.grids import Integers
from dsv3c.compiler.formats.grouping import Grouping
from dsv3c.compiler.formats.rounding import nearest
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.quantisation.inputs import MatrixInputs
from dsv3c.compiler.quantisation.methods.gptq import gptq
from dsv3c.compiler.quantisation.methods.search import search
from tests.compiler.quantisation import plain
from tests.compiler.quantisation.problems import problem

GRID = Integers(4)
GROUPINGS = [
    Grouping(0),
    Grouping(0, per_tensor=True),
    Grouping(16, "f16"),
    Grouping(32, "f16"),
    Grouping(32, "f16", "u8"),
    Grouping(128, "f16"),
]


def zeros(rounded, grid):
    return np.full(rounded.scale.shape, grid.zero) if rounded.zero is None else rounded.zero.astype(int)


@pytest.mark.parametrize("grouping", GROUPINGS, ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_codes_are_those_of_the_plain_algorithm_with_the_same_scales(bits, grouping):
    w, inputs = problem(bits, 5, 40)
    grid = Integers(bits)
    found = gptq(w, inputs, grid, grouping, sweeps=0)
    scale, size = found.scale.astype(np.float64), grouping.size or 40
    expected = plain.gptq(w, inputs.gram, 0.01, grid, scale, zeros(found, grid), size)
    np.testing.assert_array_equal(found.codes[:, :40], expected)


@pytest.mark.parametrize("grouping", GROUPINGS, ids=str)
def test_outputs_are_nearer_than_with_the_search_and_with_nearest(grouping):
    for seed in range(2):
        w, inputs = problem(seed, 24, 75)
        found = [
            plain.error(w, rounded, GRID, inputs.gram)
            for rounded in (
                gptq(w, inputs, GRID, grouping),
                gptq(w, inputs, GRID, grouping, sweeps=0),
                search(w, inputs, GRID, grouping),
                nearest(w, GRID, grouping),
            )
        ]
        assert found == sorted(found)
        assert found[0] < 0.7 * found[2]


@pytest.mark.parametrize("grouping", GROUPINGS, ids=str)
def test_any_width_rows_of_zeros_dead_inputs_and_few_tokens(grouping):
    w, _ = problem(1, 6, 75)
    w[2] = 0
    w[3, 16:48] = 0.5
    rng = np.random.default_rng(5)
    x = rng.standard_normal((4, 75)).astype(np.float32)
    x[:, 10] = x[:, 70] = 0
    inputs = MatrixInputs(4, x.T @ x / 4)
    found = gptq(w, inputs, GRID, grouping)
    assert found.codes.shape == (6, grouping.padded_k(75)) and found.scale.shape == (6, grouping.count(75))
    values = plain.decoded(found, GRID, found.codes.shape[1])
    assert np.isfinite(values).all()
    assert not values[:, 75:].any()
    assert not values[2].any()
    # Nothing was ever seen of these two: their weights are as near as scales let them.
    step = np.repeat(np.abs(found.scale.astype(np.float32)), found.codes.shape[1] // found.scale.shape[1], axis=1)
    for column in (10, 70):
        outside = np.abs(w[:, column]) >= 7 * step[:, column]
        assert (outside | (np.abs(values[:, column] - w[:, column]) <= 0.51 * step[:, column])).all()


def test_inputs_that_were_all_zero_leave_the_nearest_codes():
    w, _ = problem(2, 4, 64)
    inputs = MatrixInputs(0, np.zeros((64, 64), np.float32))
    grouping = Grouping(32, "f16")
    np.testing.assert_array_equal(
        gptq(w, inputs, GRID, grouping, sweeps=0).codes, search(w, inputs, GRID, grouping).codes
    )


def test_statistics_that_are_not_finite_are_refused():
    gram = np.eye(8, dtype=np.float32)
    gram[3, 4] = np.nan
    with pytest.raises(StatisticsError, match=r"5 tokens.*gram"):
        MatrixInputs(5, gram)
    with pytest.raises(StatisticsError, match="cross"):
        MatrixInputs(5, np.eye(8, dtype=np.float32), gram)


def test_a_gram_that_rounding_left_indefinite_is_damped_until_it_is_not():
    w, _ = problem(3, 4, 32)
    gram = np.ones((32, 32), np.float32) - 0.2 * np.eye(32, dtype=np.float32)
    inputs = MatrixInputs(1, gram)
    assert np.isfinite(plain.decoded(gptq(w, inputs, GRID, Grouping(32, "f16")), GRID, 32)).all()


def test_a_factor_is_computed_once_for_matrices_with_the_same_inputs():
    _, inputs = problem(4, 2, 16)
    assert inputs.factor is inputs.factor


@pytest.mark.parametrize("name", ["nf4-g64", "mxfp4", "fp8"])
def test_outputs_in_grids_of_floats_are_nearer_than_with_nearest(name):
    format = WeightFormat.parse(name)
    w, inputs = problem(5, 16, 75)
    w[1] = 0
    found = gptq(w, inputs, format.grid, format.grouping)
    plainly = nearest_float(w, format.grid, format.grouping)
    assert found.scale.dtype == plainly.scale.dtype and found.codes.shape == plainly.codes.shape
    values = plain.decoded(found, format.grid, found.codes.shape[1])
    assert not values[:, 75:].any() and not values[1].any()
    ours, theirs = (plain.error(w, rounded, format.grid, inputs.gram) for rounded in (found, plainly))
    assert ours < 0.7 * theirs
