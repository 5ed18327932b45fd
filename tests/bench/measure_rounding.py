"""Seconds of one core that each method takes for a matrix of Moonlight's shape, and the error of outputs it leaves.

    OPENBLAS_NUM_THREADS=1 python -m tests.bench.measure_rounding [int4-g32] [--rows 1408] [--columns 2048]

Random weights and correlated inputs. Time of the thread, so that a busy machine does not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from dsv3c.compiler.formats.quant import QTensor, quantize
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.quantisation.inputs import MatrixInputs
from dsv3c.compiler.quantisation.methods import METHODS


def inputs(columns: int, tokens: int, rng: np.random.Generator) -> MatrixInputs:
    mixing = rng.standard_normal((columns, columns), np.float32) / np.float32(np.sqrt(columns))
    rows = rng.standard_normal((tokens, columns), np.float32) @ mixing + rng.standard_normal(
        (tokens, columns), np.float32
    )
    rounded = rows + np.float32(0.1) * rng.standard_normal(rows.shape, np.float32)
    return MatrixInputs(tokens, rounded.T @ rounded / np.float32(tokens), rounded.T @ rows / np.float32(tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("format", nargs="?", default="int4-g32")
    parser.add_argument("--rows", type=int, default=1408)
    parser.add_argument("--columns", type=int, default=2048)
    given = parser.parse_args()
    rng, format = np.random.default_rng(0), WeightFormat.parse(given.format)
    w = rng.standard_normal((given.rows, given.columns), np.float32)
    seen = inputs(given.columns, 2 * given.columns, rng)

    def report(name: str, rounding: Callable[[], QTensor | None]) -> None:
        started = time.thread_time()
        made = rounding()
        took = time.thread_time() - started
        error = "" if made is None else f"{seen.output_error(w - made.dequantize()) / seen.output_error(w):.3%}"
        print(f"{name:8} {took:6.2f} s  {error}", flush=True)

    report("rtn", lambda: quantize(w, format))
    report("factor", lambda: seen.factor and None)
    for name, method in METHODS.items():
        report(name, lambda method=method: quantize(w, format, lambda w, *format: method(w, seen, *format)))


if __name__ == "__main__":
    main()
