"""Decode speed of an artifact by number of threads, with threads pinned to cores, and with two sessions at once.

    python -m tests.bench.measure_threads OUT [--tokens 96] [--repetitions 5]

Each line is the median and the range over the repetitions; of two sessions at once each has its own line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

PROMPT_TOKENS = 64


def decode(out: Path, threads: int, pinned: bool, tokens: int, repetitions: int) -> list[float]:
    """Tokens per second of each repetition, in this process."""
    import numpy as np

    from dsv3c import runtime

    ids = np.random.default_rng(0).integers(0, 256, PROMPT_TOKENS).tolist()
    with runtime.load(out, threads=threads, context=PROMPT_TOKENS + tokens + 1) as model:
        model.generate(ids, max_new_tokens=4, temperature=0, ignore_eos=True)  # starts the threads
        if pinned:
            pin(threads)
        runs = [model.generate(ids, max_new_tokens=tokens, temperature=0, ignore_eos=True) for _ in range(repetitions)]
    return [run.decode_tokens_per_second for run in runs]


def pin(threads: int) -> None:
    """Pin the busiest threads of this process, one to a CPU."""

    def ticks(thread: int) -> int:
        times = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, times))

    found = sorted(map(int, os.listdir("/proc/self/task")), key=ticks, reverse=True)
    for cpu, thread in zip(sorted(os.sched_getaffinity(0)), found[:threads], strict=False):
        os.sched_setaffinity(thread, {cpu})


def sessions(out: Path, count: int, threads: int, pinned: bool, args: argparse.Namespace) -> None:
    """Measure `count` sessions side by side, each in a process of its own, and print what they reached."""
    own = ["--worker", str(threads), *(["--pinned"] if pinned else [])]
    sizes = ["--tokens", str(args.tokens), "--repetitions", str(args.repetitions)]
    command = [sys.executable, "-m", "tests.bench.measure_threads", str(out), *own, *sizes]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    for process in started:
        speeds = json.loads(process.communicate()[0])
        name = f"{count} session{'s' * (count > 1)}, {threads} threads each{', pinned' * pinned}"
        print(f"{name:44} {statistics.median(speeds):8.1f} tok/s   {min(speeds):.1f} … {max(speeds):.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="an artifact; without one, the bundled model is compiled")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--worker", type=int, metavar="THREADS", help=argparse.SUPPRESS)
    parser.add_argument("--pinned", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(decode(args.out, args.worker, args.pinned, args.tokens, args.repetitions)))
        return
    out = args.out or compiled_model()
    cpus = len(os.sched_getaffinity(0))
    for count, threads, pinned in (
        (1, 1, False),
        (1, cpus, False),
        (1, cpus, True),
        (2, cpus, False),
        (2, cpus, True),
        (2, max(1, cpus // 2), False),
    ):
        sessions(out, count, threads, pinned, args)


def compiled_model() -> Path:
    from dsv3c.compiler.driver.pipeline import compile_checkpoint
    from dsv3c.compiler.options import CompileOptions

    root = Path(__file__).parents[2]
    out = root / "build" / "bench" / "fairytale-10m"
    compile_checkpoint(root / "artifacts" / "models" / "fairytale-10m", out, CompileOptions(overwrite=True))
    return out


if __name__ == "__main__":
    main()
