"""Decode speed of the bundled model, compiled, beside the same model in plain numpy.

    python -m tests.bench.bench_against_numpy [--formats float32 int8 int4-g32] [--tokens 100]

Plain numpy is compiler/frontend/model.py called with arrays, one token at a time over its cache. Both read the same
prompt and must choose the reference's tokens (numpy, and float32 compiled). Medians, both in one run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np

from dsv3c import runtime
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.core import ops
from dsv3c.compiler.driver.pipeline import compile_checkpoint
from dsv3c.compiler.frontend import model
from dsv3c.compiler.frontend.caches import main_cache_rows
from dsv3c.compiler.options import PAGE_SIZE, CompileOptions

MODEL = Path(__file__).parents[2] / "artifacts" / "models" / "fairytale-10m"
CONTEXT = 512
REPETITIONS = 7


def numpy_speed(prompt: list[int], wanted: list[int]) -> float:
    """Tokens a second of greedy decoding in numpy; asserts that they are `wanted`."""
    checkpoint = Checkpoint.open(MODEL)
    config, op, weight = checkpoint.config, ops.Evaluator(), cache(checkpoint.read)
    caches = {row.name: np.zeros((CONTEXT, row.width), np.float32) for row in main_cache_rows(config)}
    pages, first = np.arange(CONTEXT // PAGE_SIZE, dtype=np.int32)[None], np.zeros(1, np.int32)
    token, times, found = prompt[0], [], []
    for position in range(len(prompt) + len(wanted) - 1):
        step = model.StepInputs(
            np.full(1, token, np.int32), np.full(1, position, np.int32), first, pages, first, PAGE_SIZE
        )
        started = time.perf_counter()
        output = model.forward(op, config, weight, step, caches)
        times.append(time.perf_counter() - started)
        caches = output.caches
        if position + 1 < len(prompt):
            token = prompt[position + 1]
            continue
        token = int(output.logits[0].argmax())
        found.append(token)
    assert found == wanted, "numpy does not choose the reference's tokens"
    return 1 / statistics.median(times[len(prompt) :])


def compiled_speed(format: str, prompt: list[int], wanted: list[int]) -> float:
    """Tokens a second of the artifact; float32 must choose `wanted`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "artifact")
        compile_checkpoint(MODEL, out, CompileOptions(quant=format))
        with runtime.load(out) as loaded:
            runs = [loaded.generate(prompt, max_new_tokens=len(wanted), temperature=0) for _ in range(REPETITIONS)]
    assert format != "float32" or list(runs[0].token_ids) == wanted
    return statistics.median(run.decode_tokens_per_second for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", default=["float32", "int8", "int4-g32"])
    parser.add_argument("--tokens", type=int, default=100, choices=range(2, 201), metavar="N")
    args = parser.parse_args()
    reference = json.loads((MODEL / "reference_greedy.json").read_text(encoding="utf-8"))
    prompt, wanted = reference["prompt_ids"], reference["greedy_ids"][: args.tokens]
    plain = numpy_speed(prompt, wanted)
    print(f"numpy      {plain:8.0f} tok/s")
    for format in args.formats:
        speed = compiled_speed(format, prompt, wanted)
        print(f"{format:10} {speed:8.0f} tok/s  {speed / plain:5.1f} x numpy")


if __name__ == "__main__":
    main()
