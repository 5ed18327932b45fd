"""Decode and prefill by weight format, as shares of what the machine gives.

    python -m tests.bench.bench_formats [--shape moonlight] [--formats int4-g32 …] [--tokens 512]

decode: one row of activations; bytes of weights read a second, beside the measured read bandwidth. prefill: `--tokens`
rows; operations a second, beside the measured rate of int8 products, or of float32 for formats that are multiplied as
floats. Both over the linears and the experts of a layer together, with weights that no cache holds. A share below that
of int4-g32 is what unpacking costs. Below VNNI the rate is measured with codes of eight bits: fewer may exceed it.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
from pathlib import Path

import numpy as np
import tvm_ffi

from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.runtime.devices.cpu.features import cpu_flags, permitted
from dsv3c.runtime.measure.limits import measure_loaded
from dsv3c.targets.cpu.kernels import build
from dsv3c.targets.x86.levels import LEVELS
from tests.bench.bench_cpu_kernels import SHAPES, Bench, Shape, arguments, linears, measure, moe
from tests.targets.libraries import build_library

FORMATS = ("bfloat16", "int8", "int6-g32", "int5-g32", "int4-g32", "int4-g32-asym", "int3-g32", "int2-g32", "int2-g16")


def benches(shape: Shape, name: str, tokens: int) -> list[Bench]:
    format = WeightFormat.parse(name)
    return [*linears(shape, format, tokens), *moe(shape, format, tokens)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="moonlight")
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    parser.add_argument("--tokens", type=int, default=512, help="rows of a prefill; 0: decode alone")
    parser.add_argument("--threads", type=int, default=0, help="0: one a usable CPU")
    parser.add_argument("--level", choices=[level.name for level in LEVELS], help="default: the best this CPU runs")
    parser.add_argument("--seconds", type=float, default=0.3, help="time of a kernel")
    args = parser.parse_args()
    usable = [level for level in LEVELS if not level.missing(cpu_flags()) and permitted(level.requires)]
    level = next(level for level in usable if level.name == (args.level or usable[-1].name))
    rows = [tokens for tokens in (1, args.tokens) if tokens]
    cases = {(name, tokens): benches(SHAPES[args.shape], name, tokens) for name in args.formats for tokens in rows}
    functions = {f"{key[0]}_{key[1]}_{i}": bench.spec for key, found in cases.items() for i, bench in enumerate(found)}
    with tempfile.TemporaryDirectory() as folder:
        path = build_library({k: build(spec, level) for k, spec in functions.items()}, level, Path(folder, "bench.so"))
        kernels, library = tvm_ffi.load_module(str(path)), ctypes.CDLL(str(path))
        threads, limits = library.dsv3c_threads(args.threads), measure_loaded(library)
        print(f"{args.shape}, {level.name}, {threads} threads: {limits}")
        print("format           bits  decode GB/s      prefill GOP/s")
        for name in args.formats:
            format = WeightFormat.parse(name)
            line = f"{name:15s} {format.bits_per_weight(SHAPES[args.shape].hidden):5.2f}"
            for tokens in rows:
                found = cases[name, tokens]
                names = [f"{name}_{tokens}_{i}" for i in range(len(found))]
                times = [
                    np.median(measure(kernels[kernel], arguments(bench, tokens), args.seconds))
                    for kernel, bench in zip(names, found, strict=True)
                ]
                rate = limits.int8_rate if format.integer_products else limits.float_rate
                done, limit = (
                    (sum(bench.read for bench in found), limits.read_bandwidth)
                    if tokens == 1
                    else (2 * sum(bench.work for bench in found), rate)
                )
                line += f"  {done / sum(times) / 1e9:7.1f} ({done / sum(times) / (limit or np.nan):4.0%})"
            print(line, flush=True)


if __name__ == "__main__":
    main()
