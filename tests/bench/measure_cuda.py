"""What a CUDA artifact reaches on this machine's card: `python -m tests.bench.measure_cuda ARTIFACT [--device N]`.

Prints tokens a second for decode and prefill, and for each kind of kernel of a decode step its time, the bytes it
reads, GB/s and the share of the card's bandwidth, which is measured by copies within its memory just before. Times by
kernel come from events around single launches, so short kernels show what a launch costs; the whole step is replayed
as a graph and has no such gaps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from ctypes import byref, c_float

import numpy as np

from dsv3c import runtime
from dsv3c.runtime.artifact.costs import StepShape, call_work
from dsv3c.runtime.cli.output import columns
from dsv3c.runtime.devices.cuda.device import CudaDevice
from dsv3c.runtime.devices.cuda.driver import DEFAULT_EVENT, Handle
from dsv3c.runtime.engine.session import Request
from dsv3c.runtime.model import Model

COPY_BYTES = 256 << 20
REPEATS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("artifact")
    parser.add_argument("--device")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill test")
    parser.add_argument("--depth", type=int, default=64, help="tokens in the cache before the decode test")
    chosen = parser.parse_args()
    context = chosen.prompt + chosen.depth + 64
    with runtime.load(chosen.artifact, context=context, device=chosen.device) as model:
        device = model.session.device
        assert isinstance(device, CudaDevice)
        report = device.report()
        limit = copy_bandwidth(device)
        print(f"{report['name']}, compute capability {report['compute_capability']}, driver {report['driver']}")
        print(f"kernels {report['level']}, {report['weight_bytes'] / 1e6:.0f} MB of weights")
        print(f"copies within the card's memory read and write {limit / 1e9:.0f} GB/s together\n")
        prefill(model, chosen.prompt)
        decode(model, chosen.depth, limit)


def copy_bandwidth(device: CudaDevice) -> float:
    """Bytes a second that the best of several copies reads and writes."""
    gpu = device._gpu
    gpu.enter()
    source, target = gpu.allocate(COPY_BYTES, "a copy"), gpu.allocate(COPY_BYTES, "a copy")
    events = [Handle(), Handle()]
    for event in events:
        gpu.driver.call("cuEventCreate", byref(event), DEFAULT_EVENT)
    best = float("inf")
    for _ in range(REPEATS):
        gpu.driver.call("cuEventRecord", events[0], gpu.stream)
        gpu.driver.call("cuMemcpyDtoDAsync", target, source, COPY_BYTES, gpu.stream)
        gpu.driver.call("cuEventRecord", events[1], gpu.stream)
        gpu.wait("a copy")
        milliseconds = c_float()
        gpu.driver.call("cuEventElapsedTime", byref(milliseconds), *events)
        best = min(best, milliseconds.value * 1e-3)
    for event in events:
        gpu.discard("cuEventDestroy", event)
    for address in (source, target):
        gpu.free(address)
    return 2 * COPY_BYTES / best


def prefill(model: Model, count: int) -> None:
    tokens = tokens_of(model, count)

    def once() -> float:
        sequence = model.new_sequence()
        begin = time.perf_counter()
        model.session.run([Request(sequence, tokens, "last")])
        seconds = time.perf_counter() - begin
        sequence.close()
        return seconds

    once()
    rates = [count / once() for _ in range(5)]
    print(f"pp{count}: {statistics.median(rates):.1f} tok/s")


def decode(model: Model, depth: int, limit: float) -> None:
    tokens = tokens_of(model, depth + REPEATS + 2)
    sequence, times = model.new_sequence(), []
    model.session.run([Request(sequence, tokens[:depth], "none")])
    for token in tokens[depth:]:
        begin = time.perf_counter()
        model.session.run([Request(sequence, np.array([token], np.int32), "last")])
        times.append(time.perf_counter() - begin)
    step = statistics.median(times[1:])
    plan, costs = model.artifact.plan, model.artifact.plan.costs or {}
    entry = plan.entries["decode"]
    work = [
        call_work(costs[name], sum(plan.buffers[i].bytes for i in buffers if plan.buffers[i].kind == "weight"), at)
        if name in costs
        else None
        for at in [StepShape("decode", 1, 1, sequence.length - 1)]
        for name, buffers in entry.calls
    ]
    read = sum(part.bytes for part in work if part)
    print(
        f"tg at depth {depth}: {1 / step:.1f} tok/s, {read / step / 1e9:.1f} GB/s, {read / step / limit:.0%} of copies"
    )
    print()
    measured = np.median([model.session.device.run_timed("decode") for _ in range(REPEATS)], axis=0)
    kinds: dict[str, list[float]] = {}
    for (name, _), part, seconds in zip(entry.calls, work, measured, strict=True):
        row = kinds.setdefault(name, [0, 0.0, 0.0])
        row[0], row[1], row[2] = row[0] + 1, row[1] + seconds, row[2] + (part.bytes if part else 0)
    rows = [("kernel", "calls", "us", "MB", "GB/s", "of copies")]
    for name, (calls, seconds, size) in sorted(kinds.items(), key=lambda item: -item[1][1]):
        rate = size / seconds if seconds else 0.0
        shown = (f"{rate / 1e9:.1f}", f"{rate / limit:.0%}") if size else ("", "")
        rows.append((name, str(int(calls)), f"{seconds * 1e6:.1f}", f"{size / 1e6:.2f}", *shown))
    print("\n".join(columns(rows)))
    sequence.close()


def tokens_of(model: Model, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, model.config["vocab_size"], count).astype(np.int32)


if __name__ == "__main__":
    main()
