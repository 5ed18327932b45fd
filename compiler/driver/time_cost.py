"""How long compiling takes, about, told before any weight is read: this machine rounds a sample in each format.

By numpy: a kernel that rounds (packing) would have to be compiled first, and takes a known share of numpy's time.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import TensorType, Value, topological_order
from dsv3c.compiler.core.ops.weight import format_of
from dsv3c.compiler.core.target import Planned
from dsv3c.compiler.driver.packing import Kernels
from dsv3c.compiler.driver.weights import WeightFile
from dsv3c.compiler.quantisation import choice

_SAMPLE = (512, 2048)
_HASHED = 1 << 24
# Of the time that numpy takes: an eighth for int4-g32, a quarter for int8, one matrix of 1408 x 2048, AMD EPYC (Zen 4).
_PACKING_SHARE = 0.2
# Of one core, for a kernel at every level: 35 of x86 took 8 s on two cores of an AMD EPYC (Zen 5).
_KERNEL_SECONDS = 0.5


@dataclass(frozen=True)
class CompileTime:
    """Seconds on this machine with nothing else to do. calibrates: whether rounding by a text comes besides, which is
    not in it."""

    kernels: float
    weights: float
    hashing: float
    calibrates: bool

    @property
    def seconds(self) -> float:
        return self.kernels + self.weights + self.hashing


def estimate(planned: Planned, file: WeightFile, source_bytes: int, method: str) -> CompileTime:
    """For all weights of the file, read from so many bytes; method: by which they are rounded."""
    workers = os.cpu_count() or 1
    packing = Kernels.of(file.recipes.values())
    work: dict[tuple[str, ...], float] = defaultdict(float)
    for recipe in file.recipes.values():
        by_kernel = method == choice.NEAREST and packing.takes(recipe)
        work[_kind(recipe)] += _numbers(recipe) * (_PACKING_SHARE if by_kernel else 1)
    searched = method == choice.SEARCH
    weights = sum(count * _seconds_each(kind, workers, searched) for kind, count in work.items())
    hashing = (source_bytes + file.nbytes) * _hash_seconds() / workers
    return CompileTime(_KERNEL_SECONDS * len(planned.kernels) / workers, weights, hashing, choice.wants_text(method))


def _kind(recipe: Value) -> tuple[str, ...]:
    """Format and layout of what a recipe quantises; nothing where it does not."""
    values = topological_order([recipe])
    formats = [str(value.attrs["format"]) for value in values if value.op == "quantize"]
    layouts = [str(value.attrs["layout"]) for value in values if value.op == "pack"]
    return (*formats[:1], *layouts[:1])


def _numbers(recipe: Value) -> int:
    return sum(math.prod(map(int, leaf.shape)) for leaf in topological_order([recipe]) if leaf.op == "param")


def _seconds_each(kind: tuple[str, ...], workers: int, searched: bool) -> float:
    """For one number of a weight of that kind, all cores at work."""
    sample = np.random.default_rng(0).standard_normal(_SAMPLE, dtype=np.float32)
    weight = ops.leaf("param", "sample", TensorType("f32", _SAMPLE))
    quantized = ops.apply("quantize", (weight,), {"format": kind[0]}) if kind else weight
    recipe = ops.apply("pack", (quantized,), {"layout": kind[1]}) if len(kind) > 1 else quantized
    by_search = searched and bool(kind) and format_of(quantized.type).has_codes

    def make(_: int) -> None:
        given = sample.copy()  # as reading it costs
        rounded: Mapping[Value, Any] = {}
        if by_search:
            inputs = [choice.uniform(_SAMPLE[1])]
            rounded = {quantized: choice.round_weight(given, format_of(quantized.type), choice.SEARCH, inputs)[0]}
        ops.evaluate([recipe], lambda leaf: given, rounded)

    with ThreadPoolExecutor(workers) as pool:
        return _timed(lambda: list(pool.map(make, range(workers)))) / (workers * sample.size)


def _hash_seconds() -> float:
    """For one byte, on one core."""
    data = bytes(_HASHED)
    return _timed(lambda: hashlib.sha256(data)) / _HASHED


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
