"""Qronos (arXiv 2505.11695): GPTQ towards the outputs of the float model, on the inputs of the quantised one.

With X the rows in the float model and X̂ those in the quantised one, it looks for codes of least |X w - X̂ q|². The
first column is rounded to make up for the difference so far while all others stay; these then take what is best for
them given the first, and the rest is GPTQ. Where rows are the same in both models it is GPTQ from the first column on.
"""

from __future__ import annotations

import numpy as np

from dsv3c.compiler.formats.grids import Grid
from dsv3c.compiler.formats.grouping import Grouping
from dsv3c.compiler.formats.rounding import Rounded
from dsv3c.compiler.quantisation.columns import Columns
from dsv3c.compiler.quantisation.descent import descend
from dsv3c.compiler.quantisation.inputs import Array, MatrixInputs
from dsv3c.compiler.quantisation.methods.gptq import SWEEPS, compensate, gptq


def qronos(
    w: Array,
    inputs: MatrixInputs,
    grid: Grid,
    grouping: Grouping,
    *,
    sweeps: int = SWEEPS,
) -> Rounded:
    """w f32 [N, K]; sweeps and errors as of `gptq`. Damping counts in both models, so that it draws towards w."""
    if inputs.cross is None:
        return gptq(w, inputs, grid, grouping, sweeps=sweeps)
    hessian = inputs.factor.hessian
    drift = (inputs.cross - inputs.gram).astype(np.float32) @ w.T
    # Any codes q miss by |X̂ (q - aim)|² and what no codes can help.
    columns = Columns(w + np.linalg.solve(hessian, drift).T, grid, grouping)
    compensate(columns, inputs.factor, first=w[:, 0] + drift[0] / hessian[0, 0])
    descend(columns, hessian, sweeps)
    return columns.rounded()
