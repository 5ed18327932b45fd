"""What the driver raises becomes one of our errors, which says on what device and while doing what."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dsv3c.runtime.devices.vulkan.binding import check, guarded
from dsv3c.runtime.errors import DeviceLost, DeviceMemoryRefused


class Lost(Exception):
    pass


class Full(Exception):
    pass


class Unknown(Exception):
    pass


VK = SimpleNamespace(
    VK_SUCCESS=0,
    VkErrorDeviceLost=Lost,
    VkErrorOutOfDeviceMemory=Full,
    VkErrorOutOfHostMemory=Full,
    VkErrorTooManyObjects=Full,
    VkErrorUnknown=Unknown,
    exception_codes={-4: Lost, -2: Full},
)


def test_a_lost_device_is_told_with_what_it_ran() -> None:
    with (
        pytest.raises(DeviceLost, match="Card was lost while it ran the entry decode"),
        guarded(VK, "Card", "the entry decode"),
    ):
        check(VK, -4)


def test_refused_memory_is_told_with_its_size() -> None:
    with (
        pytest.raises(DeviceMemoryRefused, match="Card refused 4096 bytes for the cache"),
        guarded(VK, "Card", "the cache", 4096),
    ):
        check(VK, -2)


def test_other_codes_stay_the_drivers() -> None:
    check(VK, 0)
    with pytest.raises(Unknown), guarded(VK, "Card", "a step"):
        check(VK, -13)
