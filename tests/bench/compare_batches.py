"""Sequences side by side, here and in llama.cpp, in turns.

    python -m tests.bench.compare_batches ARTIFACT GGUF --llama BUILD [-b 1 4 16 64] [-n 32] [-d 128] [-r 3] [-t 2]

ARTIFACT and GGUF are of the same checkpoint, in formats of about the same bits; the artifact was compiled with
--max-sequences of the largest batch. BUILD is the folder that llama.cpp was built in, with the target
llama-batched-bench. In every round each batch is measured by both, one right after the other, in processes of their
own: every sequence generates n tokens behind d of its own. Speeds and ratios are medians over the rounds. Leave the
machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv3c.runtime.cli.tables import number, percent, table

TITLES = ("batch", "dsv3c t/s", "weights GB/s", "of read limit", "llama.cpp t/s", "ratio")


@dataclass
class Rounds:
    """Of one batch: rows of `dsv3c bench`, and tokens a second of the other."""

    ours: list[dict[str, Any]] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)


def ours(args: argparse.Namespace, batch: int) -> dict[str, Any]:
    sizes = ["-p", "0", "-n", str(args.tokens), "-d", str(args.depth), "-b", str(batch), "-r", "1"]
    command = [sys.executable, "-m", "dsv3c.runtime", "bench", str(args.artifact), *sizes, *threads(args)]
    (row,) = json.loads(run([*command, "-o", "json"]))["tests"]
    return dict(row)


def theirs(args: argparse.Namespace, batch: int) -> float:
    program = args.llama / "bin" / "llama-batched-bench"
    sizes = ["-npp", str(args.depth), "-ntg", str(args.tokens), "-npl", str(batch)]
    room = ["-c", str(batch * (args.depth + args.tokens))]
    out = run([str(program), "-m", str(args.gguf), *sizes, *room, *threads(args), "--output-format", "jsonl"])
    return speed(out)


def speed(out: str) -> float:
    """Tokens a second of all sequences, from the output in JSON lines; other lines may stand between."""
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    if len(rows) != 1:
        raise SystemExit(f"llama-batched-bench gave {len(rows)} rows, one was asked for:\n{out}")
    return float(rows[0]["speed_tg"])


def threads(args: argparse.Namespace) -> list[str]:
    return [] if args.threads is None else ["-t", str(args.threads)]


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def cells(batch: int, found: Rounds) -> list[str]:
    speeds = [row["median_ts"] for row in found.ours]
    weights, share = (middle([row[name] for row in found.ours]) for name in ("weight_gb_per_s", "read_share"))
    ratio = statistics.median(a / b for a, b in zip(speeds, found.theirs, strict=True))
    return [str(batch), number(middle(speeds)), number(weights), percent(share), number(middle(found.theirs)),
            f"{ratio:.2f}"]  # fmt: skip


def middle(values: list[Any]) -> float | None:
    return None if None in values else statistics.median(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--llama", type=Path, required=True, metavar="BUILD")
    parser.add_argument("-b", "--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("-n", "--tokens", type=int, default=32)
    parser.add_argument("-d", "--depth", type=int, default=128)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-t", "--threads", type=int)
    args = parser.parse_args()
    found = {batch: Rounds() for batch in args.batches}
    for number_of_round in range(args.rounds):
        for batch, rounds in found.items():
            rounds.ours.append(ours(args, batch))
            rounds.theirs.append(theirs(args, batch))
            pair = f"{rounds.ours[-1]['median_ts']:.1f} and {rounds.theirs[-1]:.1f} tokens/s"
            print(f"round {number_of_round + 1}, batch {batch}: {pair}", file=sys.stderr)
    print(table(TITLES, [cells(batch, rounds) for batch, rounds in found.items()], left=0), end="")


if __name__ == "__main__":
    main()
