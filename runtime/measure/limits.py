"""The machine's own limits, measured by routines inside the kernel library, on the threads that the kernels use."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3c.runtime.devices.memory import Block

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_LEAST_BYTES, _MOST_BYTES = 256 << 20, 1 << 30
_TIMES_CACHE = 4  # so much larger than the last cache is what is read
_PASSES = 8
_BURST_ROUNDS, _BURSTS = 100_000, 8


@dataclass(frozen=True)
class Limits:
    """Bytes read and operations done a second, at best; two operations a multiply-add. None: cannot be measured."""

    read_bandwidth: float | None = None
    float_rate: float | None = None
    int8_rate: float | None = None

    def best(self, other: Limits) -> Limits:
        """The higher of each: a limit is what was reached once, whatever else the machine was doing."""
        return Limits(
            _higher(self.read_bandwidth, other.read_bandwidth),
            _higher(self.float_rate, other.float_rate),
            _higher(self.int8_rate, other.int8_rate),
        )


def measure_loaded(loaded: ctypes.CDLL) -> Limits:
    """Measured with a kernel library on its own threads; nothing but None where it has no such routines."""
    try:
        read, floats, integers = loaded.dsv3c_probe_read, loaded.dsv3c_probe_float, loaded.dsv3c_probe_int8
    except AttributeError:
        return Limits()
    return Limits(_read_bandwidth(read), _rate(floats), _rate(integers))


def stream_bytes() -> int:
    """Bytes to read through to meet memory and no cache."""
    return max(_LEAST_BYTES, min(_MOST_BYTES, _TIMES_CACHE * last_cache_bytes()))


def last_cache_bytes() -> int:
    """Size of the last cache level of the first CPU; 0 where the system does not tell."""
    sizes = [_cache_size(path) for path in _CACHES.glob("index*/size")]
    return max(sizes, default=0)


def _cache_size(path: Path) -> int:
    text = path.read_text().strip()
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 0)
    return int(text[:-1]) * unit if unit and text[:-1].isdigit() else 0


def _read_bandwidth(read: Any) -> float:
    read.argtypes, read.restype = [ctypes.c_void_p, ctypes.c_size_t], None
    block = Block(stream_bytes(), "measuring the read bandwidth")
    block.data[:] = 1  # memory never written to is one page of zeros
    best = min(_seconds(lambda: read(block.address, block.size)) for _ in range(_PASSES))
    return block.size / best


def _rate(burst: Any) -> float | None:
    burst.argtypes, burst.restype = [ctypes.c_long], ctypes.c_double
    rates = []
    for _ in range(_BURSTS):
        start = time.perf_counter()
        operations = burst(_BURST_ROUNDS)
        rates.append(operations / (time.perf_counter() - start))
    return max(rates) or None


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _higher(a: float | None, b: float | None) -> float | None:
    known = [value for value in (a, b) if value is not None]
    return max(known, default=None)
