import numpy as np
import pytest

from dsv3c.compiler.formats.grids import Integers
from dsv3c.compiler.formats.grouping import Grouping
from dsv3c.compiler.quantisation.columns import Columns
from dsv3c.compiler.quantisation.descent import descend
from tests.compiler.quantisation.problems import problem


@pytest.mark.parametrize("grouping", [Grouping(0), Grouping(16), Grouping(32, "f16", "u8"), Grouping(256)], ids=str)
def test_no_row_gets_worse_and_errors_stay_true(grouping):
    w, inputs = problem(0, 12, 150)
    columns = Columns(w, Integers(3), grouping)
    for group in range(columns.groups):
        own = columns.span(group)
        columns.search(group, columns.weights[own], inputs.importance[own])
        columns.round(own, columns.weights[own])
    hessian = inputs.factor.hessian

    def cost():
        return np.einsum("kn,kn->n", columns.error, hessian @ columns.error)

    before = cost()
    for _ in range(3):
        descend(columns, hessian, 1)
        kept = columns.error.copy()
        for group in range(columns.groups):
            columns.round(columns.span(group), columns.weights[columns.span(group)] - kept[columns.span(group)])
        np.testing.assert_allclose(columns.error, kept, atol=1e-5)
        after = cost()
        assert (after <= before * 1.001).all()
        before = after


def test_a_column_is_left_at_its_best_code():
    w, inputs = problem(1, 6, 40)
    grid = Integers(3)
    columns = Columns(w, grid, Grouping(0))
    columns.search(0, columns.weights, inputs.importance)
    columns.round(slice(0, 40), columns.weights)
    hessian = inputs.factor.hessian
    descend(columns, hessian, 30)
    error, scale = columns.error.astype(np.float64), columns.scale[0].astype(np.float64)
    for row in range(6):
        best = error[:, row] @ hessian @ error[:, row]
        for column in range(40):
            for code in range(8):
                other = error[:, row].copy()
                other[column] += scale[row] * (int(columns.codes[column, row]) - code)
                assert other @ hessian @ other >= best * (1 - 1e-4)
