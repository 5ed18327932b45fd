"""What calibrating will take, told before any weight is read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from dsv3c.compiler.checkpoint import ModelConfig
from dsv3c.compiler.core.ir import Value, dim_size
from dsv3c.compiler.core.ops.table import Array
from dsv3c.compiler.driver.calibrated import Calibrated, CalibrationPlan
from dsv3c.compiler.quantisation import choice
from dsv3c.compiler.quantisation.calibration import store
from dsv3c.compiler.quantisation.calibration.forward import Sequences
from dsv3c.compiler.quantisation.calibration.stages import Experts, Matrix, Stage
from dsv3c.compiler.quantisation.calibration.text import LENGTH, CalibrationText

_ELEMENT = 4  # bytes: float32, or int32
_COPIES = 4  # of a weight: as it is read, corrected, its errors, its codes and scales
_SQUARES = 40  # bytes for each pair of inputs: the gram, the Hessian in float64, its factors
_LARGE_SQUARES = 24  # the same where inputs are so many that it is factored in float32
_LARGE = 4096


@dataclass(frozen=True)
class CalibrationCost:
    """memory_bytes: about the largest, for activations, a matrix for each worker, and what its inputs are known by.
    disk_bytes: activations that are put into a file without a name, in the folder of the artifact."""

    tokens: int
    sequences: int
    method: str
    memory_bytes: int
    disk_bytes: int


def cost(planned: CalibrationPlan, text: CalibrationText, method: str, config: ModelConfig) -> CalibrationCost:
    models = 2 if choice.corrects(method) else 1
    entries = [entry for entry in (planned.main, planned.mtp) if entry is not None]
    kept = [kept_bytes(entry, text.sequences) for entry in entries]
    matrices = max(
        (_matrix_bytes(item) for entry in entries for stage in entry.stages for item in _items(stage)), default=0
    )
    scores = 3 * _ELEMENT * config.num_attention_heads * LENGTH * LENGTH * _workers()
    memory = models * sum(held for held, _ in kept) + max(matrices, scores)
    return CalibrationCost(text.tokens, len(text.sequences), method, memory, models * sum(disk for _, disk in kept))


def kept_bytes(entry: Calibrated, tokens: Sequence[Array]) -> tuple[int, int]:
    """The most that is kept of activations at a time, in memory and in files, as store.Store places them."""
    bounds = Sequences(tokens, {}).bounds()
    held: dict[Value, int] = {}
    filed: dict[Value, int] = {}
    most = most_filed = 0
    for stage in entry.stages:
        for value in (*stage.mixed, *stage.kept):
            rows = sum(dim_size(value.shape[0], sizes) for sizes in bounds)
            nbytes = _ELEMENT * rows * prod(int(dim) for dim in value.shape[1:])
            fits = nbytes + sum(held.values()) <= store.MEMORY_BYTES
            (held if fits else filed)[value] = nbytes
        most, most_filed = max(most, sum(held.values())), max(most_filed, sum(filed.values()))
        for value in stage.dropped:
            held.pop(value, None)
            filed.pop(value, None)
    return most, most_filed


def _items(stage: Stage) -> Iterator[Matrix | Experts]:
    yield from stage.matrices
    yield from stage.experts


def _matrix_bytes(item: Matrix | Experts) -> int:
    if isinstance(item, Matrix):
        *_, n, k = (int(dim) for dim in item.weight.shape)
        heads = int(item.weight.shape[0]) if len(item.weight.shape) > 2 else 1
        return heads * (_COPIES * _ELEMENT * n * k + _ELEMENT * k * k) + _square_bytes(k)
    *_, width, hidden = (int(dim) for dim in item.gate_up.inputs[2].shape)
    return (_workers() + 1) * (3 * _COPIES * _ELEMENT * width * hidden + _square_bytes(max(width, hidden)))


def _square_bytes(k: int) -> int:
    return (_SQUARES if k <= _LARGE else _LARGE_SQUARES) * k * k


def _workers() -> int:
    return os.cpu_count() or 1
