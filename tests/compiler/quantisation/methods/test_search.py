import numpy as np
import pytest

from dsv3c.compiler.formats.float_rounding import nearest_float
from dsv3c.compiler.formats.grids import Integers
from dsv3c.compiler.formats.grouping import Grouping
from dsv3c.compiler.formats.quant import OutOfRange
from dsv3c.compiler.formats.rounding import nearest
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.quantisation import choice
from dsv3c.compiler.quantisation.inputs import MatrixInputs
from dsv3c.compiler.quantisation.methods.search import search
from tests.compiler.quantisation import plain
from tests.compiler.quantisation.problems import problem

GROUPINGS = [
    Grouping(0),
    Grouping(0, per_tensor=True),
    Grouping(16, "f16"),
    Grouping(32, "f16"),
    Grouping(32, "f16", "u8"),
    Grouping(128, "f16"),
]


def costs(w, rounded, grid, importance):
    """Weighted error of each row."""
    return np.square(w - plain.decoded(rounded, grid, w.shape[1])) @ importance


@pytest.mark.parametrize("grouping", GROUPINGS, ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_no_row_is_worse_than_with_nearest(bits, grouping):
    w, inputs = problem(bits, 40, 75)
    grid = Integers(bits, lowest=int(bits == 8))
    found, plainly = search(w, inputs, grid, grouping), nearest(w, grid, grouping)
    ours, theirs = (costs(w, rounded, grid, inputs.importance) for rounded in (found, plainly))
    assert grouping.per_tensor or (ours <= theirs * 1.00001).all()
    assert ours.sum() < (0.99 if bits < 8 else 1) * theirs.sum()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_scales_are_nearly_the_best_of_hundreds_tried_one_by_one(bits):
    w, inputs = problem(bits, 8, 16)
    grid = Integers(bits)
    found = costs(w, search(w, inputs, grid, Grouping(16, "f16")), grid, inputs.importance)
    reach = np.abs(w).max(axis=1) / 2 ** (bits - 1)
    best = [
        plain.best_scale(row, inputs.importance, grid, np.linspace(-1.2, 1.2, 300) * most)[0]
        for row, most in zip(w, reach, strict=True)
    ]
    assert found.sum() <= 1.05 * sum(best)
    assert (found <= 1.35 * np.array(best)).all()


@pytest.mark.parametrize("grouping", GROUPINGS, ids=str)
def test_codes_are_the_nearest_for_the_stored_scales(grouping):
    w, inputs = problem(1, 6, 40)
    grid = Integers(3)
    found = search(w, inputs, grid, grouping)
    zero = np.full(found.scale.shape, grid.zero) if found.zero is None else found.zero
    for (row, column), value in np.ndenumerate(w):
        group = row, column // (grouping.size or 40)
        scale = float(found.scale[group])
        away = abs(value / scale - (int(found.codes[row, column]) - int(zero[group])))
        assert away <= 0.5001 or found.codes[row, column] in (grid.lowest, grid.highest)


@pytest.mark.parametrize("grouping", GROUPINGS, ids=str)
def test_rows_of_zeros_groups_of_one_value_and_padding(grouping):
    w, inputs = problem(2, 5, 75)
    w[1] = 0
    w[2, :32] = -0.75
    w[3] = 1e-30
    found = search(w, inputs, Integers(4), grouping)
    values = plain.decoded(found, Integers(4), found.codes.shape[1])
    assert not values[1].any() and not values[:, 75:].any()
    assert np.abs(values[3]).max() < 1e-29
    if grouping.size in (16, 32):
        np.testing.assert_allclose(values[2, :32], -0.75, rtol=1e-3)


def test_inputs_that_matter_more_are_met_better():
    w = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    gram = np.diag(np.where(np.arange(32) < 8, 100, 1).astype(np.float32))
    found = search(w, MatrixInputs(10, gram), Integers(3), Grouping(32, "f16"))
    error = np.square(w - plain.decoded(found, Integers(3), 32)).mean(axis=0)
    assert error[:8].mean() < 0.7 * error[8:].mean()


@pytest.mark.parametrize("name", ["nf4-g64", "mxfp4", "fp8"])
def test_no_row_of_floats_is_worse_than_with_nearest(name):
    format = WeightFormat.parse(name)
    w, inputs = problem(3, 8, 150)
    w[1] = 0
    found, plainly = search(w, inputs, format.grid, format.grouping), nearest_float(w, format.grid, format.grouping)
    ours, theirs = (costs(w, rounded, format.grid, inputs.importance) for rounded in (found, plainly))
    assert found.scale.dtype == plainly.scale.dtype
    assert (ours <= theirs * 1.00001).all()
    assert ours[1] == 0 and ours.sum() < 0.999 * theirs.sum()


@pytest.mark.parametrize("method", ["search", "gptq"])
def test_weights_that_are_too_large_for_the_scale_are_refused(method):
    """Not made zeros."""
    w = np.ones((4, 64), np.float32)
    w[2, 40] = 1e9
    with pytest.raises(OutOfRange):
        choice.round_weight(w, WeightFormat.parse("int4-g32"), method, [choice.uniform(64)])
