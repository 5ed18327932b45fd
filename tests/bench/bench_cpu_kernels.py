"""Speed of CPU kernels at the sizes of Moonlight-16B-A3B, beside the memory bandwidth of the machine.

    python tests/bench/bench_cpu_kernels.py [--formats int4-g32 …] [--tokens 1 4 512] [--threads 2] [--kernels moe]

Weights are spread over enough copies that no cache holds them, as in a real step. Each line gives the best and the
median time, the bytes of weights (or cache) read per second, and operations per second.
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

from dsv3c.compiler.quant import NUMPY_DTYPES, QuantSpec
from dsv3c.targets.cpu.isa import host_cpu_flags
from dsv3c.targets.cpu.kernels import build, operands
from dsv3c.targets.cpu.kernels.attention import MlaAbsorbed
from dsv3c.targets.cpu.kernels.cache import Paging
from dsv3c.targets.cpu.kernels.frame import Rows
from dsv3c.targets.cpu.kernels.linear import Linear
from dsv3c.targets.cpu.kernels.materialized import MlaMaterialized
from dsv3c.targets.cpu.kernels.moe import MoeDown, MoeGateUp
from dsv3c.targets.cpu.kernels.router import ExpertOrder
from dsv3c.targets.cpu.library import build_library
from dsv3c.targets.x86.levels import LEVELS

HIDDEN, MOE_WIDTH, EXPERTS, TOP_K, SHARED = 2048, 1408, 64, 6, 2
HEADS, NOPE, ROPE, VALUE, RANK, PAGE = 16, 128, 64, 128, 512, 16
STREAM_BYTES = 256 << 20  # weights of one round: several times any cache
ROUTINGS = 8  # random choices of experts that a round goes through, as no cache must hold the active ones


@dataclass
class Bench:
    """One kernel: its spec, inputs by role, and the bytes read and multiply-adds of a call."""

    name: str
    spec: object
    inputs: dict[str, np.ndarray | list[np.ndarray]]  # a list: one for each copy in turn
    read: float
    work: float


def linear(fmt: QuantSpec, tokens: int) -> Bench:
    spec = Linear(Rows(tokens), HIDDEN, HIDDEN, fmt)
    weights = HIDDEN * HIDDEN
    return Bench("linear", spec, {}, weights * fmt.bits_per_weight(HIDDEN) / 8, tokens * weights)


def order_vector(tokens: int, seed: int) -> np.ndarray:
    """expert_order's vector for random routing; its first element is the number of active experts."""
    rng, total = np.random.default_rng(seed), EXPERTS + SHARED
    ids = np.array([rng.permutation(EXPERTS)[:TOP_K] for _ in range(tokens)])
    pairs = np.concatenate([ids, np.tile(np.arange(EXPERTS, total), (tokens, 1))], -1).reshape(-1)
    active, counts = np.unique(pairs, return_counts=True)
    out = np.zeros(2 + 2 * total + len(pairs), np.int32)
    out[0], out[1 : 1 + len(active)] = len(active), active
    out[1 + total : 2 + total + len(active)] = [0, *np.cumsum(counts)]
    out[2 + 2 * total :] = np.argsort(pairs, kind="stable")
    return out


def moe(fmt: QuantSpec, tokens: int) -> list[Bench]:
    orders = [order_vector(tokens, seed) for seed in range(ROUTINGS)]
    active = np.mean([order[0] for order in orders])
    spec = ExpertOrder(Rows(tokens), EXPERTS, TOP_K, SHARED)
    weights, pairs = HIDDEN * MOE_WIDTH, tokens * (TOP_K + SHARED)
    read = active * weights * fmt.bits_per_weight(HIDDEN) / 8
    gate_up = MoeGateUp(spec, HIDDEN, MOE_WIDTH, fmt)
    down = MoeDown(spec, HIDDEN, MOE_WIDTH, fmt)
    return [
        Bench("moe_gate_up", gate_up, {"order": orders}, 2 * read, 2 * pairs * weights),
        Bench("moe_down", down, {"order": orders}, read, pairs * weights),
    ]


def attention(fmt: QuantSpec, tokens: int, context: int) -> Bench:
    pages = -(-context // PAGE)
    paging = Paging(1, pages, PAGE, RANK, ROPE, "bf16")
    inputs = {
        "positions": np.arange(context - tokens, context, dtype=np.int32),
        "page_table": np.arange(pages, dtype=np.int32),
        "cache": np.full(pages * PAGE * (RANK + ROPE), 0x3C00, np.uint16),
    }
    read = tokens * context * (RANK + ROPE) * 2.0
    if tokens < 32:
        work = tokens * HEADS * context * (2 * RANK + ROPE)
        return Bench(f"absorbed {context}", MlaAbsorbed(Rows(tokens), HEADS, paging, 0.1), inputs, read, work)
    spec = MlaMaterialized(Rows(tokens), HEADS, NOPE, VALUE, paging, 0.1, fmt)
    rebuild = HEADS * context * RANK * (NOPE + VALUE)
    work = rebuild + tokens * HEADS * (context - tokens / 2) * (NOPE + ROPE + VALUE)
    return Bench(f"materialized {context}", spec, inputs, read, work)


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
        array = aligned(given.size if operand.size is None else operand.size, dtype)
        if given is not None:
            array[: given.size] = given
        elif operand.role == "control":
            array[0] = tokens
        elif dtype.kind == "f":
            array[:] = 0.01
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


READ_SOURCE = r"""
#include <stdint.h>
typedef uint64_t v8 __attribute__((vector_size(64), aligned(64)));
uint64_t read_all(const v8 *p, uint64_t n) {
  v8 a = {0}, b = {0}, c = {0}, d = {0};
  for (uint64_t i = 0; i + 4 <= n; i += 4) { a ^= p[i]; b ^= p[i + 1]; c ^= p[i + 2]; d ^= p[i + 3]; }
  a ^= b ^ c ^ d;
  return a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
}
"""


def read_bandwidth(threads: int, folder: Path) -> float:
    """Bytes a second that `threads` threads read from memory together."""
    import subprocess
    from concurrent.futures import ThreadPoolExecutor

    from dsv3c.targets.cpu.library import find_c_compiler

    source, path = folder / "read.c", folder / "read.so"
    source.write_text(READ_SOURCE)
    flags = ["-O3", "-march=native", "-shared", "-fPIC"]
    subprocess.run([*find_c_compiler(), *flags, "-o", str(path), str(source)], check=True)
    function = ctypes.CDLL(str(path)).read_all
    function.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    arrays = [aligned(STREAM_BYTES, np.dtype(np.uint8)) for _ in range(threads)]
    for array in arrays:
        array[:] = 1
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(12):
            start = time.perf_counter()
            list(pool.map(lambda array: function(array.ctypes.data, array.size // 64), arrays))
            best = min(best, time.perf_counter() - start)
    return threads * STREAM_BYTES / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", default=["float32", "bfloat16", "int8", "int4-g32", "int4-g128"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--contexts", nargs="+", type=int, default=[4096])
    parser.add_argument("--threads", type=int, default=0, help="0: one a usable CPU")
    parser.add_argument("--level", choices=[level.name for level in LEVELS], help="default: the best this CPU runs")
    parser.add_argument("--kernels", nargs="+", default=["linear", "moe", "attention"])
    parser.add_argument("--seconds", type=float, default=1.0, help="time a line")
    args = parser.parse_args()
    usable = [level for level in LEVELS if not level.missing(host_cpu_flags())]
    level = next(level for level in usable if level.name == (args.level or usable[-1].name))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(args, level, folder)


def run(args: argparse.Namespace, level: object, folder: Path) -> None:
    cases: list[tuple[str, int, Bench]] = []
    for tokens in args.tokens:
        for text in args.formats:
            fmt = QuantSpec.parse(text)
            benches = [linear(fmt, tokens)] if "linear" in args.kernels else []
            benches += moe(fmt, tokens) if "moe" in args.kernels else []
            if "attention" in args.kernels and (tokens >= 32 or text == args.formats[0]):
                benches += [attention(fmt, tokens, context) for context in args.contexts if context >= tokens]
            cases += [(text, tokens, bench) for bench in benches]
    functions = {f"k{i}": build(bench.spec, level) for i, (_, _, bench) in enumerate(cases)}
    path = build_library(functions, level, folder / "bench.so")
    threads = ctypes.CDLL(str(path)).dsv3c_threads(args.threads)
    kernels = tvm_ffi.load_module(str(path))
    limit = read_bandwidth(threads, folder)
    print(f"{level.name}, {threads} threads, memory reads {limit / 1e9:.1f} GB/s")
    for i, (text, tokens, bench) in enumerate(cases):
        copies = arguments(bench, tokens)
        times = measure(kernels[f"k{i}"], copies, args.seconds)
        best, median = times.min(), np.median(times)
        print(
            f"{bench.name:18s} {text:14s} T={tokens:<4d} best {best * 1e6:9.1f} us  median {median * 1e6:9.1f} us  "
            f"{bench.read / median / 1e9:6.1f} GB/s ({bench.read / median / limit:4.0%})  "
            f"{2 * bench.work / best / 1e9:7.0f} GFLOP/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
