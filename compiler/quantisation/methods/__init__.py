"""The methods of rounding by name. Each is a pure function of one matrix and what is known of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dsv3c.compiler.formats.grids import Grid
from dsv3c.compiler.formats.grouping import Grouping
from dsv3c.compiler.formats.rounding import Rounded
from dsv3c.compiler.quantisation.inputs import Array, MatrixInputs
from dsv3c.compiler.quantisation.methods.gptq import gptq
from dsv3c.compiler.quantisation.methods.qronos import qronos
from dsv3c.compiler.quantisation.methods.search import search

# (w f32 [N, K], inputs, grid, grouping)
Method = Callable[[Array, MatrixInputs, Grid, Grouping], Rounded]

METHODS: Mapping[str, Method] = {"search": search, "gptq": gptq, "qronos": qronos}
