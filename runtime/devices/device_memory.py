"""What a plan takes of a GPU's memory and asks of it, told before any of it is taken; copies within it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dsv3c.runtime.artifact.plan import Plan
from dsv3c.runtime.errors import DeviceLacks, DeviceMemoryShort

MOST_ELEMENTS = 2**31 - 1  # of a buffer: kernels count them in 32 bits


@dataclass(frozen=True)
class Needs:
    """Bytes that a plan takes on a device; staging is given back when the weights are there."""

    weights: int
    cache: int
    activations: int
    inputs: int
    staging: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations + self.inputs + self.staging

    def require(self, device: str, available: int | None) -> None:
        """Raises DeviceMemoryShort, by part, if `available` bytes are known and too few."""
        if available is None or self.total <= available:
            return
        parts = ", ".join(f"{size} for {name}" for name, size in asdict(self).items() if size)
        raise DeviceMemoryShort(device=device, available=available, needed=self.total, parts=parts)

    def report(self) -> dict[str, Any]:
        """The entries of a device's report."""
        return {
            "weight_bytes": self.weights,
            "arena_bytes": self.activations,
            "cache_bytes": self.cache,
            "memory_bytes": self.total,
        }


def require_countable(device: str, plan: Plan, slots: int) -> None:
    """Raises DeviceLacks for a buffer with more elements than kernels count, caches of `slots` rows included."""
    for buffer in plan.buffers:
        cache = buffer.kind == "cache"
        elements = slots * buffer.width if cache else buffer.size
        if elements > MOST_ELEMENTS:
            what = f"the buffer {buffer.name}"
            less = "lower context or max_batch when loading" if cache else "compile with a lower --max-tokens"
            lacks = f"{what} would have {elements} elements, kernels count up to {MOST_ELEMENTS}"
            raise DeviceLacks(device=device, lacks=lacks, hint_text=less)


def disjoint(source: int, target: int, count: int) -> list[tuple[int, int]]:
    """(first, size) of the pieces in which `count` rows from `source` on are copied to `target`, as if all at once.

    In this order; none overlaps the place it goes to, which copies on GPUs must not.
    """
    step = abs(target - source)
    if step == 0:
        return []
    pieces = [(first, min(step, count - first)) for first in range(0, count, step)]
    return pieces[::-1] if target > source else pieces
