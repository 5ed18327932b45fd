"""What an indexer costs and saves: a slice of DeepSeek-V3.2's shape, as it is and with dense attention, over depth.

    python -m tests.bench.measure_sparse FOLDER [--depths 2048 8192 32768] [--prefill 512] [-n 20] [-t 2]

The slice has two layers with V3.2's attention (128 heads, latents of 512 and 64, an indexer of 64 heads and 128
columns that chooses 2048 positions) and few, small experts, all random. FOLDER gets the checkpoint and both artifacts,
which differ in index_topk alone; what is there already is used again. The caches are filled with random rows, so that
no depth has to be read first. Times are medians over n steps of one token, taken in turns, and over three of --prefill
tokens; those of kernels are of all layers together. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dsv3c.compiler.driver.pipeline import compile_checkpoint
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.cli.tables import table
from dsv3c.runtime.devices.device import Device, open_device
from dsv3c.runtime.engine.session import Session
from tests.checkpoints import tensor_shapes, tiny_config, write_safetensors

CONTEXT = 33 * 1024
TITLES = ("depth", "form", "step ms", "attention ms", "indexer ms", "of the step", "step, dense / sparse")
INDEXER = ("index_topk", "index_write")
ATTENTION = ("mla_absorbed", "mla_sparse", "mla_materialized")


def config(index_topk: int) -> dict[str, Any]:
    return tiny_config(
        "deepseek_v32",
        vocab_size=512,
        hidden_size=7168,
        intermediate_size=2048,
        moe_intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=128,
        num_key_value_heads=128,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        index_n_heads=64,
        index_head_dim=128,
        index_topk=index_topk,
        max_position_embeddings=CONTEXT,
    )


def write_checkpoint(folder: Path, index_topk: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(index_topk)))
    weights = folder.parent / "model.safetensors"
    if not weights.exists():
        rng = np.random.default_rng(0)
        tensors = {}
        for name, shape in tensor_shapes(config(index_topk)).items():
            scale = np.float32(shape[-1] ** -0.5 if len(shape) > 1 else 1)
            tensors[name] = (rng.standard_normal(shape, np.float32) * scale).astype(ml_dtypes.bfloat16)
        write_safetensors(weights, tensors)
    (folder / weights.name).unlink(missing_ok=True)
    (folder / weights.name).symlink_to(weights.resolve())
    return folder


def artifact(args: argparse.Namespace, form: str, index_topk: int) -> Path:
    out: Path = args.folder / f"{form}-{args.quant}-{args.cache}"
    if not out.exists():
        target = "x86" + (f":levels={args.levels}" if args.levels else "")
        options = CompileOptions(quant=args.quant, target=target, cache_dtype=args.cache)
        compile_checkpoint(write_checkpoint(args.folder / form, index_topk), out, options)
    return out


class Filled:
    """An artifact with random rows in all slots of its caches."""

    def __init__(self, path: Path, threads: int | None) -> None:
        opened = Artifact.open(path)
        self.plan = opened.plan
        self.device: Device = open_device(opened, CONTEXT, threads)
        self.session = Session(self.plan, self.device, opened.manifest.vocab_size)
        rng = np.random.default_rng(1)
        for start in range(0, CONTEXT, 1024):
            rows = {}
            for cache in self.plan.caches:
                numbers = rng.standard_normal((1024, cache.width), np.float32)
                # bfloat16 lies in memory as its bits.
                rows[cache.name] = (
                    numbers if cache.dtype == "float32" else numbers.astype(ml_dtypes.bfloat16).view(np.uint16)
                )
            self.device.write_slots(start, rows)

    def entry(self, depth: int, tokens: int) -> str:
        """That of such a step."""
        return self.session.entry_for(tokens, tokens, depth + tokens)

    def step(self, depth: int, tokens: int) -> float:
        """Seconds of a step of so many tokens behind `depth` others."""
        pages = np.arange(CONTEXT // self.plan.page_size, dtype=np.int32)
        positions = np.arange(depth, depth + tokens, dtype=np.int32)
        ids, sequence = np.full(tokens, 7, np.int32), np.zeros(tokens, np.int32)
        started = time.perf_counter()
        self.session.step(ids, positions, sequence, [pages], np.array([tokens - 1]))
        return time.perf_counter() - started

    def kernels(self, entry: str) -> dict[str, float]:
        """Seconds of the kernels by operation, in a step like the last one."""
        found: dict[str, float] = defaultdict(float)
        calls = self.plan.entries[entry].calls
        for (name, _), seconds in zip(calls, self.device.run_timed(entry), strict=True):
            found[name.rpartition("_")[0]] += float(seconds)
        return found


def measured(forms: Mapping[str, Filled], depth: int, tokens: int, count: int) -> dict[str, tuple[float, float, float]]:
    """By form, milliseconds of a step, of attention in it, and of the indexer: medians of `count`, in turns."""
    steps, kernels = defaultdict(list), defaultdict(list)
    for turn in range(count + 1):
        for form, filled in forms.items():
            seconds, of_kernels = filled.step(depth, tokens), filled.kernels(filled.entry(depth, tokens))
            if turn:
                steps[form].append(seconds)
                kernels[form].append(of_kernels)

    def of(form: str, names: tuple[str, ...]) -> float:
        return 1e3 * statistics.median(sum(each.get(name, 0) for name in names) for each in kernels[form])

    return {form: (1e3 * statistics.median(steps[form]), of(form, ATTENTION), of(form, INDEXER)) for form in forms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--depths", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--prefill", type=int, default=0, help="tokens of a step to measure besides")
    parser.add_argument("-n", "--steps", type=int, default=20)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--levels")
    parser.add_argument("--quant", default="int8")
    parser.add_argument("--cache", default="bf16")
    args = parser.parse_args()
    forms = {form: artifact(args, form, topk) for form, topk in (("dense", CONTEXT), ("sparse", 2048))}
    opened = {form: Filled(path, args.threads) for form, path in forms.items()}
    rows = []
    for tokens in (1, args.prefill) if args.prefill else (1,):
        for depth in args.depths:
            found = measured(opened, depth, tokens, args.steps if tokens == 1 else 3)
            for form, (step, attention, indexer) in found.items():
                cells = [f"{step:.1f}", f"{attention:.1f}", f"{indexer:.2f}", f"{indexer / step:.0%}"]
                what = f"{depth}" if tokens == 1 else f"{depth}, {tokens} tokens"
                rows.append([what, form, *cells, f"{found['dense'][0] / step:.2f}"])
                print(rows[-1], flush=True)
    print(table(TITLES, rows, left=2), end="")


if __name__ == "__main__":
    main()
