"""What every device must do with rows of its caches."""

from __future__ import annotations

import numpy as np

from dsv3c.runtime.artifact.plan import Plan
from dsv3c.runtime.devices.device import Device

SPANS = [(0, 16), (24, 20), (63, 1), (0, 0), (5, 0)]  # of 64 slots: first, number


def check_rows(device: Device, plan: Plan, start: int, count: int) -> None:
    """Rows that are written are read again, bit by bit, in every cache; all other rows stay as they were."""
    before = device.read_slots(0, device.slots)
    kinds = {
        name: (rows.shape[1], "bfloat16" if rows.dtype == np.uint16 else rows.dtype) for name, rows in before.items()
    }
    assert kinds == {cache.name: (cache.width, cache.dtype) for cache in plan.caches}
    generator = np.random.default_rng(2)
    given = {}
    for name, rows in before.items():
        rows.view(np.uint8)[:] = generator.integers(0, 256, rows.view(np.uint8).shape)
        given[name] = rows[start : start + count].copy()
        given[name].view(np.uint8)[:] ^= 255
        given[name].setflags(write=False)  # as what was read from a file
    device.write_slots(0, before)
    device.write_slots(start, given)
    for name, rows in device.read_slots(start, count).items():
        assert rows.tobytes() == given[name].tobytes()
        before[name][start : start + count] = given[name]
    for name, rows in device.read_slots(0, device.slots).items():
        assert rows.tobytes() == before[name].tobytes()
