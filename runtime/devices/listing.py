"""The devices that artifacts for GPU targets can run on here, as `--device` chooses among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dsv3c.runtime.errors import RuntimeFault

Rows = list[dict[str, Any]]


def _vulkan() -> Rows:
    from dsv3c.runtime.devices.vulkan.gpu import capabilities
    from dsv3c.runtime.devices.vulkan.instance import Instance

    instance = Instance()
    try:
        return [
            {
                "number": device.number,
                "name": device.name,
                "type": device.type,
                "memory": device.memory,
                "capabilities": list(capabilities(instance, device)),
            }
            for device in instance.devices
        ]
    finally:
        instance.close()


def _cuda() -> Rows:
    from dsv3c.runtime.devices.cuda.device import form_capabilities
    from dsv3c.runtime.devices.cuda.driver import Driver
    from dsv3c.runtime.devices.cuda.gpu import devices, dotted

    return [
        {
            "number": device.number,
            "name": device.name,
            "type": f"compute capability {dotted(device.capability)}",
            "memory": device.memory,
            "capabilities": form_capabilities(device),
        }
        for device in devices(Driver())
    ]


def _metal() -> Rows:
    from dsv3c.runtime.devices.metal.gpu import listed as gpus

    return gpus()


# By target: what lists its devices, each with its number, name, type, bytes of memory, and what it has of the
# capabilities that forms of kernels may require.
LISTINGS: Mapping[str, Callable[[], Rows]] = {"cuda": _cuda, "metal": _metal, "vulkan": _vulkan}


def listed() -> dict[str, dict[str, Any]]:
    """By target: `devices`, and `missing`, the reason why there are none."""
    found: dict[str, dict[str, Any]] = {}
    for target, listing in LISTINGS.items():
        try:
            found[target] = {"devices": listing(), "missing": None}
        except RuntimeFault as fault:
            found[target] = {"devices": [], "missing": str(fault).partition("\n")[0]}
    return found
