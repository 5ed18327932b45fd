"""Weighted scale search: each weight to its nearest code, with the scale that costs the outputs least.

The square of an error of a weight is weighted by the mean square of the input that it meets, as llama.cpp weighs by its
importance matrix. Errors of different weights are taken to be independent.
"""

from __future__ import annotations

from dsv3c.compiler.formats.grids import Grid
from dsv3c.compiler.formats.grouping import Grouping
from dsv3c.compiler.formats.rounding import Rounded
from dsv3c.compiler.quantisation.columns import Columns
from dsv3c.compiler.quantisation.inputs import Array, MatrixInputs


def search(w: Array, inputs: MatrixInputs, grid: Grid, grouping: Grouping) -> Rounded:
    """w f32 [N, K]."""
    return weighted(w, inputs.importance, grid, grouping)


def weighted(w: Array, importance: Array, grid: Grid, grouping: Grouping) -> Rounded:
    """w f32 [N, K], importance [K]: what the square of an error counts in each column."""
    columns = Columns(w, grid, grouping)
    for group in range(columns.groups):
        columns.search(group, columns.weights[columns.span(group)], importance[columns.span(group)])
        columns.round(columns.span(group), columns.weights[columns.span(group)])
    return columns.rounded()
