"""Speed of CPU kernels at the sizes of real models, beside the memory bandwidth of the machine.

    python -m tests.bench.bench_cpu_kernels [--shapes v3 …] [--formats int4-g32 …] [--tokens 1 4 512] [--kernels moe]

Weights are spread over enough copies that no cache holds them, as in a real step. Each line gives the best and the
median time, the bytes of weights (or cache) read per second, and operations per second. Kernels that two models share
are measured once.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm_ffi

from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.runtime.devices.cpu.features import cpu_flags, permitted
from dsv3c.runtime.measure.limits import measure_loaded
from dsv3c.targets.calls.attention import MlaAbsorbed, MlaMaterialized
from dsv3c.targets.calls.cache import Paging
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.moe import MoeDown, MoeGateUp
from dsv3c.targets.calls.operands import Rows
from dsv3c.targets.calls.router import ExpertOrder
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels import build, operands
from dsv3c.targets.x86.levels import LEVELS
from tests.targets.libraries import build_library

PAGE = 16
STREAM_BYTES = 256 << 20  # weights of one round: several times any cache
ROUTINGS = 8  # random choices of experts that a round goes through, as no cache must hold the active ones
WEIGHT_LIMIT = 2 << 30  # bytes of weights of one kernel; larger ones are left out


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that its kernels depend on."""

    hidden: int
    dense: int
    moe_width: int
    experts: int
    top_k: int
    shared: int
    heads: int
    nope: int = 128
    rope: int = 64
    value: int = 128
    rank: int = 512


SHAPES = {
    # V3 has 256 experts: as many as fit into memory here are enough that no cache holds the active ones.
    "v3": Shape(7168, 18432, 2048, 32, 8, 1, 128),
    "moonlight": Shape(2048, 11264, 1408, 64, 6, 2, 16),
    "v2-lite": Shape(2048, 10944, 1408, 64, 6, 2, 16),
    "fairytale": Shape(256, 768, 128, 16, 4, 1, 8, nope=32, rope=16, value=32, rank=128),
}


@dataclass
class Bench:
    """One kernel: its spec, inputs by role, and the bytes read and multiply-adds of a call."""

    name: str
    spec: object
    inputs: dict[str, np.ndarray | list[np.ndarray]]  # a list: one for each copy in turn
    read: float
    work: float


def linear(name: str, fmt: WeightFormat, tokens: int, n: int, k: int) -> Bench:
    spec = Linear(Rows(tokens), n, k, fmt)
    return Bench(name, spec, {}, n * k * fmt.bits_per_weight(k) / 8, tokens * n * k)


def linears(shape: Shape, fmt: WeightFormat, tokens: int) -> list[Bench]:
    """What stands behind attention, and the wide product of a dense layer."""
    return [
        linear("o_proj", fmt, tokens, shape.hidden, shape.heads * shape.value),
        linear("dense gate_up", fmt, tokens, 2 * shape.dense, shape.hidden),
    ]


def order_vector(shape: Shape, tokens: int, seed: int) -> np.ndarray:
    """expert_order's vector for random routing; its first element is the number of active experts."""
    rng, total = np.random.default_rng(seed), shape.experts + shape.shared
    ids = np.array([rng.permutation(shape.experts)[: shape.top_k] for _ in range(tokens)])
    pairs = np.concatenate([ids, np.tile(np.arange(shape.experts, total), (tokens, 1))], -1).reshape(-1)
    active, counts = np.unique(pairs, return_counts=True)
    out = np.zeros(2 + 2 * total + len(pairs), np.int32)
    out[0], out[1 : 1 + len(active)] = len(active), active
    out[1 + total : 2 + total + len(active)] = [0, *np.cumsum(counts)]
    out[2 + 2 * total :] = np.argsort(pairs, kind="stable")
    return out


def moe(shape: Shape, fmt: WeightFormat, tokens: int) -> list[Bench]:
    orders = [order_vector(shape, tokens, seed) for seed in range(ROUTINGS)]
    active = np.mean([order[0] for order in orders])
    spec = ExpertOrder(Rows(tokens), shape.experts, shape.top_k, shape.shared)
    weights, pairs = shape.hidden * shape.moe_width, tokens * (shape.top_k + shape.shared)
    read = active * weights * fmt.bits_per_weight(shape.hidden) / 8
    gate_up = MoeGateUp(spec, shape.hidden, shape.moe_width, fmt)
    down = MoeDown(spec, shape.hidden, shape.moe_width, fmt)
    return [
        Bench("moe_gate_up", gate_up, {"order": orders}, 2 * read, 2 * pairs * weights),
        Bench("moe_down", down, {"order": orders}, read, pairs * weights),
    ]


def attention(shape: Shape, fmt: WeightFormat, tokens: int, context: int, element: str) -> list[Bench]:
    """Absorbed, and materialised where that may pay, over a cache of `element`: bf16, int8 or fp8."""
    pages, width = -(-context // PAGE), shape.rank + shape.rope
    paging = Paging(1, pages, PAGE, shape.rank, shape.rope, element)
    inputs = {
        "positions": np.arange(context - tokens, context, dtype=np.int32),
        "page_table": np.arange(pages, dtype=np.int32),
        "cache": np.full(pages * PAGE * paging.row_bytes // 2, 0x3C00, np.uint16),
    }
    pairs, read = tokens * (context - (tokens - 1) / 2), float(tokens * context * paging.row_bytes)
    work = pairs * shape.heads * (shape.rank + width)
    suffix = "" if element == "bf16" else f" {element}"
    name = f"absorbed {context}{suffix}"
    absorbed = Bench(name, MlaAbsorbed(Rows(tokens), shape.heads, paging, 0.1), inputs, read, work)
    if tokens < 32:
        return [absorbed]
    group = fmt.grouping.activations if fmt.integer_products else 0
    spec = MlaMaterialized(Rows(tokens), shape.heads, shape.nope, shape.value, paging, 0.1, fmt, group=group)
    rebuild = shape.heads * context * shape.rank * (shape.nope + shape.value)
    work = rebuild + pairs * shape.heads * (shape.nope + shape.rope + shape.value)
    return [absorbed, Bench(f"materialized {context}{suffix}", spec, inputs, read, work)]


def aligned(size: int, dtype: np.dtype) -> np.ndarray:
    raw = np.zeros(size * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size * dtype.itemsize].view(dtype)


def arguments(bench: Bench, tokens: int) -> list[list[object]]:
    """Argument lists over copies of the weights, filled with small random numbers."""
    rng, fixed, copies = np.random.default_rng(0), {}, []
    for operand in operands(bench.spec):
        given = bench.inputs.get(operand.role)
        if isinstance(given, list):
            given = given[0]
        dtype = np.dtype(np.uint16) if operand.dtype == "bf16" else NUMPY_DTYPES[operand.dtype]
        if operand.size is None:  # the cache, of whatever type
            given = given.view(dtype)
        array = aligned(given.size if operand.size is None else operand.size, dtype)
        if given is not None:
            array[: given.size] = given
        elif operand.role == "control":
            array[0] = tokens
        elif dtype.kind == "f":
            array[:] = 0.01
        elif operand.dtype == "e8m0":  # 0 would be 2^-127, and multiply slowly
            array[:] = 2.0**-7
        elif operand.role.endswith("data"):
            array[:] = rng.integers(0, 100, array.size, np.uint8).astype(dtype)
        fixed[operand.role] = array
    weights = [role for role in fixed if role.startswith("w.")]
    size = sum(fixed[role].nbytes for role in weights)
    count = max(1, min(64, STREAM_BYTES // size)) if weights else 1
    turns = {role: given for role, given in bench.inputs.items() if isinstance(given, list)}
    for i in range(max(count, *(len(given) for given in turns.values()), 1) if turns else count):
        own = dict(fixed)
        for role in (*(weights if i < count and count > 1 else ()), *turns):
            own[role] = aligned(fixed[role].size, fixed[role].dtype)
            own[role][:] = turns[role][i % len(turns[role])] if role in turns else fixed[role]
        copies.append([tvm_ffi.from_dlpack(array) for array in own.values()])
    return copies


def measure(function: object, copies: list[list[object]], seconds: float) -> np.ndarray:
    """Seconds a call, each call on the next copy."""
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times) < 3:
        for args in copies:
            start = time.perf_counter()
            function(*args)
            times.append(time.perf_counter() - start)
    return np.array(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--formats", nargs="+", default=["bfloat16", "int8", "int4-g32"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--contexts", nargs="+", type=int, default=[4096])
    parser.add_argument("--caches", nargs="+", choices=("bf16", "int8", "fp8"), default=["bf16"])
    parser.add_argument("--threads", type=int, default=0, help="0: one a usable CPU")
    parser.add_argument("--level", choices=[level.name for level in LEVELS], help="default: the best this CPU runs")
    parser.add_argument("--kernels", nargs="+", default=["linear", "moe", "attention"])
    parser.add_argument("--seconds", type=float, default=0.3, help="time a line")
    args = parser.parse_args()
    usable = [level for level in LEVELS if not level.missing(cpu_flags()) and permitted(level.requires)]
    level = next(level for level in usable if level.name == (args.level or usable[-1].name))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(args, level, folder)


@dataclass
class Case:
    """A bench to run: the models whose kernel it is, the weight format, the tokens of a call."""

    shapes: list[str]
    format: str
    tokens: int
    bench: Bench


def cases(args: argparse.Namespace) -> list[Case]:
    """What the arguments ask for, kernels of several shapes once."""
    found: dict[object, Case] = {}
    for name in args.shapes:
        for tokens in args.tokens:
            for text in args.formats:
                for bench in benches(args, SHAPES[name], text, tokens):
                    # Absorbed attention has no weights: it is the same kernel for all formats.
                    case = found.setdefault(bench.spec, Case([], text, tokens, bench))
                    if name not in case.shapes:
                        case.shapes.append(name)
    return list(found.values())


def benches(args: argparse.Namespace, shape: Shape, text: str, tokens: int) -> list[Bench]:
    fmt = WeightFormat.parse(text)
    found = linears(shape, fmt, tokens) if "linear" in args.kernels else []
    found += moe(shape, fmt, tokens) if "moe" in args.kernels else []
    if "attention" in args.kernels:
        contexts = [context for context in args.contexts if context >= tokens]
        for context in contexts:
            found += [bench for cache in args.caches for bench in attention(shape, fmt, tokens, context, cache)]
    return found


def weight_bytes(bench: Bench) -> int:
    weights = [operand for operand in operands(bench.spec) if operand.role.startswith("w.")]
    return sum(int(operand.size or 0) * NUMPY_DTYPES[operand.dtype].itemsize for operand in weights)


def run(args: argparse.Namespace, level: IsaLevel, folder: Path) -> None:
    asked = cases(args)
    chosen = [case for case in asked if weight_bytes(case.bench) <= WEIGHT_LIMIT]
    functions = {f"k{i}": build(case.bench.spec, level) for i, case in enumerate(chosen)}
    path = build_library(functions, level, folder / "bench.so")
    kernels = tvm_ffi.load_module(str(path))
    threads = ctypes.CDLL(str(path)).dsv3c_threads(args.threads)  # after loading, which puts TVM's own pool in
    limit = measure_loaded(ctypes.CDLL(str(path))).read_bandwidth or float("nan")
    print(f"{level.name}, {threads} threads, memory reads {limit / 1e9:.1f} GB/s")
    for i, case in enumerate(chosen):
        bench = case.bench
        times = measure(kernels[f"k{i}"], arguments(bench, case.tokens), args.seconds)
        best, median = times.min(), np.median(times)
        print(
            f"{','.join(case.shapes):17s} {bench.name:17s} {case.format:9s} T={case.tokens:<4d} "
            f"best {best * 1e6:9.1f} us  median {median * 1e6:9.1f} us  "
            f"{bench.read / median / 1e9:6.1f} GB/s ({bench.read / median / limit:4.0%})  "
            f"{2 * bench.work / best / 1e9:7.0f} GFLOP/s",
            flush=True,
        )
    for case in asked:
        if case not in chosen:
            size = weight_bytes(case.bench) / 1e9
            print(f"{','.join(case.shapes)} {case.bench.name} {case.format}: left out, its weights take {size:.1f} GB")


if __name__ == "__main__":
    main()
