"""What formats do to the outputs of matrices, told from the rows that meet these: of each matrix a few numbers stay.

An error e of a row of weights makes a mean square error e H eᵀ of its outputs, H the second moments of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from dsv3c.compiler.core.ir import Value
from dsv3c.compiler.core.ops.weight import decoded
from dsv3c.compiler.formats.elements import as_float32
from dsv3c.compiler.formats.quant import OutOfRange, stored
from dsv3c.compiler.formats.table import FORMATS
from dsv3c.compiler.quantisation.inputs import Array, MatrixInputs

_SAMPLE = 64  # rows of a matrix that errors are told from


class OutputErrors:
    """Told what each matrix meets, it adds up for each weight what rounding to the nearest does to its outputs.

    formats: those that are tried, by the weight. Rows of tokens that visit an expert count for it alone.
    """

    def __init__(self, formats: Mapping[Value, Sequence[str]]) -> None:
        self._formats = formats
        self._sums: dict[Value, dict[int, Array]] = {}  # of each expert: the power of its outputs, errors by format

    def look(
        self, weight: Value, expert: int | None, w: Array, inputs: Sequence[MatrixInputs], few: str
    ) -> Callable[[], Array]:
        """As forward.RoundMatrix; nothing is rounded."""
        formats = self._formats.get(weight)
        if formats:
            matrices = as_float32(w).reshape(-1, *w.shape[-2:])
            found = (
                _powers(matrix, formats, inputs[number if len(inputs) > 1 else 0], few)
                for number, matrix in enumerate(matrices)
            )
            self._sums.setdefault(weight, {})[expert or 0] = sum(found, np.zeros(1 + len(formats)))
        return lambda: w

    def relative(self, weights: Iterable[Value]) -> dict[str, float]:
        """By format the square of the error over that of the outputs, of all that was seen of `weights`, which are
        tried in the same formats; infinite for one that cannot hold them."""
        seen = [weight for weight in weights if weight in self._sums]
        parts = [self._sums[weight][expert] for weight in seen for expert in sorted(self._sums[weight])]
        if not parts:
            return {}
        power, *errors = np.sum(parts, axis=0)
        return {
            name: float(error / power) if power else 0.0
            for name, error in zip(self._formats[seen[0]], errors, strict=True)
        }


def _powers(matrix: Array, formats: Sequence[str], inputs: MatrixInputs, few: str) -> Array:
    """f64 [1 + formats]: the square of the outputs of a matrix [N, K], summed over tokens, and of their errors."""
    rows = matrix[:: max(1, len(matrix) // _SAMPLE)]
    share = len(matrix) / len(rows)
    tokens = 1 if few else inputs.tokens  # statistics of a whole layer say little of an expert

    def error(name: str) -> float:
        try:
            return inputs.output_error(rows - decoded(stored(rows, FORMATS[name])))
        except OutOfRange:
            return np.inf

    return share * tokens * np.array([inputs.output_error(rows), *map(error, formats)])
