"""Clients at once on `dsv3c serve`, and on llama-server in the same run.

    python -m tests.bench.measure_server ARTIFACT [--seconds 120] [--clients 64] [--check 50] [--json FILE]
                                         [--peer LLAMA_SERVER GGUF] [--max-batch 16] [--context 2048] [-t 2]

Each server runs in a process of its own, one after the other, and gets the same clients: completions of mixed lengths,
most of them streams, of which some are left before they end. Times are the clients'. Afterwards so many of our answers
are compared with what the engine gives alone, and the caches are looked at: no page may be left over. ARTIFACT and GGUF
are of the same checkpoint; the artifact was compiled with --max-sequences of the batch. Leave the machine alone
meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from dsv3c import runtime
from dsv3c.runtime.cli.tables import table
from tests.runtime.server.load import Mix, Told, load

TITLES = ("server", "requests", "whole", "left", "429", "failed", "first token ms", "between tokens ms", "tokens/s",
          "requests/s", "left over", "differ")  # fmt: skip
PAGES = ("dsv3c_cache_pages", "dsv3c_cache_pages_free")
PERCENTILES = (50, 95, 99)
START = 120.0  # seconds until a server answers
SETTLE = 10.0  # and until the last work of clients that left has ended


def ours(args: argparse.Namespace, port: int) -> list[str]:
    sizes = ["--max-batch", str(args.max_batch), "--context", str(args.context)]
    threads = [] if args.threads is None else ["--threads", str(args.threads)]
    command = [sys.executable, "-m", "dsv3c.runtime", "serve", str(args.artifact), "--port", str(port)]
    return [*command, *sizes, *threads]


def theirs(args: argparse.Namespace, port: int) -> list[str]:
    program, gguf = args.peer
    room = ["-c", str(args.max_batch * args.context), "-np", str(args.max_batch)]
    threads = [] if args.threads is None else ["-t", str(args.threads)]
    return [program, "-m", gguf, "--host", "127.0.0.1", "--port", str(port), "--slots", *room, *threads]


@contextmanager
def started(command: list[str], port: int) -> Iterator[str]:
    """The address of a server, which answers. It is ended with SIGTERM."""
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + START
            while not answers(url):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise SystemExit(f"{' '.join(command)} does not answer:\n{log.read()[-4000:]}")
                time.sleep(0.1)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                print(f"{command[0]} did not end within a minute of SIGTERM", file=sys.stderr)


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", timeout=2).status_code == 200
    except httpx2.HTTPError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def left_over(url: str) -> int:
    """What is still in use when all clients are gone: pages of ours, slots of theirs."""
    until, found = time.monotonic() + SETTLE, 1
    while found and time.monotonic() < until:
        time.sleep(0.2)
        slots = httpx2.get(f"{url}/slots", timeout=10).json()
        found = sum(slot["is_processing"] for slot in slots) + pages_in_use(url)
    return found


def pages_in_use(url: str) -> int:
    """By our metrics; others tell nothing of pages."""
    lines = httpx2.get(f"{url}/metrics", timeout=10).text.splitlines()
    found = {name: sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{")) for name in PAGES}
    return int(found[PAGES[0]] - found[PAGES[1]])


def measured(name: str, command: list[str], port: int, args: argparse.Namespace) -> tuple[dict[str, Any], list[Told]]:
    mix = Mix(args.vocab_size, args.longest_prompt, args.longest_answer, longest_stay=2.0)
    with started(command, port) as url:
        began = time.perf_counter()
        found = asyncio.run(load(url, mix.wish, args.clients, args.seconds, args.seed))
        seconds = time.perf_counter() - began
        over = left_over(url)
    return {"server": name, **summary(found, seconds), "left_over": over}, found


def summary(found: Many[Told], seconds: float) -> dict[str, Any]:
    """Times in seconds. Of a client that left, what it got until then counts."""
    refused = sum(told.status == 429 for told in found)
    whole, left = sum(told.whole for told in found), sum(told.left for told in found)
    failed = [told for told in found if not told.whole and not told.left and told.status != 429]
    return {
        "requests": len(found),
        "whole": whole,
        "left": left,
        "refused": refused,
        "failed": dict(Counter(told.fault or f"status {told.status}, not whole" for told in failed)),
        "seconds": seconds,
        "first_token": percentiles([told.first for told in found if told.first is not None]),
        "between_tokens": percentiles([gap for told in found for gap in told.gaps]),
        "tokens_per_second": sum(told.tokens for told in found) / seconds,
        "requests_per_second": whole / seconds,
    }


def percentiles(seconds: list[float]) -> dict[str, float | None]:
    values = np.percentile(seconds, PERCENTILES).tolist() if seconds else [None] * len(PERCENTILES)
    return {f"p{number}": value for number, value in zip(PERCENTILES, values, strict=True)}


def differing(args: argparse.Namespace, found: Many[Told]) -> list[Told]:
    """Of some whole answers, those that the engine alone gives otherwise."""
    whole = [told for told in found if told.whole]
    some = random.Random(args.seed).sample(whole, min(args.check, len(whole)))
    with runtime.load(args.artifact, context=args.context, threads=args.threads, prefix_cache=False) as model:
        return [told for told in some if model.generate(list(told.wish.prompt), **told.wish.how).text != told.text]


def cells(row: dict[str, Any]) -> list[str]:
    times = [" / ".join(map(milliseconds, row[name].values())) for name in ("first_token", "between_tokens")]
    counts = [str(row[name]) for name in ("requests", "whole", "left", "refused")]
    speeds = [f"{row[name]:.1f}" for name in ("tokens_per_second", "requests_per_second")]
    ends = [str(row["left_over"]), row.get("differ", "-")]
    return [row["server"], *counts, str(sum(row["failed"].values())), *times, *speeds, *ends]


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--check", type=int, default=50, metavar="ANSWERS")
    parser.add_argument("--peer", nargs=2, metavar=("LLAMA_SERVER", "GGUF"))
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--longest-prompt", type=int, default=1024)
    parser.add_argument("--longest-answer", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    manifest = json.loads((args.artifact / "manifest.json").read_text(encoding="utf-8"))
    args.vocab_size = manifest["model"]["vocab_size"]
    port = free_port()
    row, found = measured("dsv3c", ours(args, port), port, args)
    differ = differing(args, found)
    rows = [{**row, "differ": f"{len(differ)} of {min(args.check, row['whole'])}"}]
    if args.peer:
        port = free_port()
        rows.append(measured("llama-server", theirs(args, port), port, args)[0])
    for line in rows:
        for fault, count in line["failed"].items():
            print(f"{line['server']}: {count} times {fault}", file=sys.stderr)
    print(f"times of p{', p'.join(map(str, PERCENTILES))}; {args.clients} clients, {os.cpu_count()} CPUs\n")
    print(table(TITLES, [cells(line) for line in rows], left=0), end="")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
