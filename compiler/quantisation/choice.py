"""A weight rounded by a method of the user's choice, or by the best of them, and what it fell back to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from dsv3c.compiler.core.ops.table import Array
from dsv3c.compiler.formats import coded, keeping
from dsv3c.compiler.formats.elements import as_float32
from dsv3c.compiler.formats.grids import Grid
from dsv3c.compiler.formats.grouping import Grouping
from dsv3c.compiler.formats.quant import QTensor, quantize
from dsv3c.compiler.formats.rounding import Rounded
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.quantisation.inputs import MatrixInputs
from dsv3c.compiler.quantisation.methods import METHODS
from dsv3c.compiler.quantisation.sparsity import Zeros, count_zeros, sparse

NEAREST, SEARCH, AUTO = "rtn", "search", "auto"
_FOLDING = {"awq": SEARCH}  # methods that put scales of the inputs into weights first, and what they round by then
_CORRECTING = ("qronos",)  # methods that take the inputs of the float model beside those of the rounded one
_SAMPLE = 128  # rows of a matrix that its error is measured on


# As `map` of one function, or of a pool.
Each = Callable[[Callable[[int], Any], Iterable[int]], Iterable[Any]]


def method_names() -> tuple[str, ...]:
    return (NEAREST, *METHODS, *_FOLDING, AUTO)


def corrects(method: str) -> bool:
    """Whether the method wants inputs of the model as it is rounded so far."""
    return method in (*_CORRECTING, AUTO)


def folds(method: str) -> bool:
    """Whether the method scales the inputs of matrices before it rounds them."""
    return method in _FOLDING


def wants_text(method: str) -> bool:
    """Whether there is no such rounding without statistics."""
    return method not in (NEAREST, SEARCH)


def enough_tokens(columns: int) -> int:
    """How many rows statistics of K inputs want, below which those of the layer say more."""
    return max(32, columns // 4)


@dataclass(frozen=True)
class Outcome:
    """How one matrix was rounded. error: mean square error of its outputs; power: their mean square; both summed over
    the rows that were measured. reason: why it is not by the method that was asked for. zeros: where small weights were
    set to 0 before."""

    method: str
    error: float
    power: float
    reason: str = ""
    zeros: Zeros | None = None

    def noted(self) -> list[Any]:
        """As JSON holds it; `of` is the inverse."""
        return list(astuple(self))

    @classmethod
    def of(cls, noted: Sequence[Any]) -> Outcome:
        method, error, power, reason, zeros = noted
        return cls(method, error, power, reason, None if zeros is None else Zeros(*zeros))


def uniform(columns: int) -> MatrixInputs:
    """Of inputs of which nothing is known."""
    return MatrixInputs(0, np.eye(columns, dtype=np.float32))


def round_weight(
    w: Array,
    format: WeightFormat,
    method: str,
    inputs: Sequence[MatrixInputs],
    few: str = "",
    threshold: float = 0.0,
    each: Each = map,
) -> tuple[QTensor, list[Outcome]]:
    """w [..., N, K], float or coded. inputs: of each matrix of it, or one for all. few: why inputs are not its own.
    threshold: as sparsity.sparse takes it; errors are measured against w as it was. each: goes through its matrices.

    Raises OutOfRange where a code with its scale would be infinity.
    """
    if format.keeps_fp8 or (coded.is_coded(w.dtype) and keeping.holds(w, format)):
        # Codes of the checkpoint stay as they are, and blocks of fp8 are no groups of a row.
        kept = sparse(as_float32(w), threshold, format.grouping.size) if threshold else w
        return quantize(kept, format), [Outcome(NEAREST, 0.0, 0.0)]
    *leading, rows, columns = w.shape
    matrices = as_float32(w).reshape(-1, rows, columns)

    def one(number: int) -> tuple[QTensor, Outcome]:
        own = inputs[number if len(inputs) > 1 else 0]
        kept = sparse(matrices[number], threshold, format.grouping.size)
        rounded, taken, reason = _round_matrix(kept, format, method, own, few)
        outcome = _measured(matrices[number], rounded, own, taken, reason)
        return rounded, replace(outcome, zeros=count_zeros(rounded)) if threshold else outcome

    made = list(each(one, range(len(matrices))))

    def joined(arrays: Sequence[Array]) -> Array:
        return np.stack(arrays).reshape(*leading, *arrays[0].shape)

    found = [weight for weight, _ in made]
    zeros = [weight.zero for weight in found if weight.zero is not None]
    codes, scale = joined([weight.codes for weight in found]), joined([weight.scale for weight in found])
    return QTensor(codes, scale, joined(zeros) if zeros else None, format, columns), [outcome for _, outcome in made]


def _round_matrix(
    w: Array, format: WeightFormat, method: str, inputs: MatrixInputs, few: str
) -> tuple[QTensor, str, str]:
    """The weight, the method that it was rounded by, and why it is not the one that was asked for."""
    if few and method != NEAREST:
        return _rounded(w, format, SEARCH, inputs), SEARCH, few if method != SEARCH else ""
    if method != AUTO:
        try:
            return _rounded(w, format, method, inputs), method, ""
        except np.linalg.LinAlgError as error:
            return _rounded(w, format, SEARCH, inputs), SEARCH, str(error)
    tried, failed = {}, ""
    for name in (NEAREST, *METHODS):
        if name in _CORRECTING and inputs.cross is None:
            continue
        try:
            tried[name] = _rounded(w, format, name, inputs)
        except np.linalg.LinAlgError as error:
            failed = f"{name}: {error}"
    best = min(tried, key=lambda name: _cost(w, tried[name], inputs))
    return tried[best], best, failed


def _rounded(w: Array, format: WeightFormat, method: str, inputs: MatrixInputs) -> QTensor:
    if method == NEAREST:
        return quantize(w, format)

    def by_method(w: Array, grid: Grid, grouping: Grouping) -> Rounded:
        return METHODS[_FOLDING.get(method, method)](w, inputs, grid, grouping)

    return quantize(w, format, by_method)


def _cost(w: Array, rounded: QTensor, inputs: MatrixInputs) -> float:
    """Mean square error of the outputs, up to a constant: of Ŵx̂ against Wx where the inputs x of the float model are
    known, of Ŵx̂ against Wx̂ otherwise."""
    error = w - rounded.dequantize()
    found = inputs.output_error(error)
    if inputs.cross is None:
        return found
    # By errors, as these are small: of values the differences between methods would be lost in float32.
    return found + 2 * float(np.vdot(error @ (inputs.cross - inputs.gram), w))


def _measured(w: Array, rounded: QTensor, inputs: MatrixInputs, method: str, reason: str) -> Outcome:
    some = slice(None, None, max(1, len(w) // _SAMPLE))
    part = QTensor(
        rounded.codes[some],
        rounded.scale[some],
        None if rounded.zero is None else rounded.zero[some],
        rounded.format,
        rounded.k,
    )
    error = inputs.output_error(w[some] - part.dequantize())
    return Outcome(method, error, inputs.output_error(w[some]), reason)
