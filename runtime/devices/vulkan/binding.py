"""The package `vulkan` and its errors as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dsv3c.runtime.errors import DeviceApiMissing, DeviceLost, DeviceMemoryRefused

GET_LOADER = "install the Vulkan loader (Debian package libvulkan1)"
GET_PACKAGE = "pip install 'dsv3c[vulkan]', or 'dsv3c-runtime[vulkan]' on a device"


def load() -> Any:
    """The module `vulkan`. Raises DeviceApiMissing without it or without the loader that it opens."""
    try:
        import vulkan
    except ImportError as error:
        raise DeviceApiMissing(
            api="Vulkan", reason=f"the package vulkan is missing ({error})", get=GET_PACKAGE
        ) from None
    except OSError:
        raise DeviceApiMissing(api="Vulkan", reason="there is no libvulkan.so.1", get=GET_LOADER) from None
    return vulkan


@contextmanager
def guarded(vk: Any, device: str, what: str, nbytes: int = 0) -> Iterator[None]:
    """Errors of the driver while it does `what`. Raises DeviceLost, DeviceMemoryRefused."""
    try:
        yield
    except (vk.VkErrorOutOfDeviceMemory, vk.VkErrorOutOfHostMemory, vk.VkErrorTooManyObjects) as error:
        raise DeviceMemoryRefused(device=device, bytes=nbytes, what=what) from error
    except vk.VkErrorDeviceLost as error:
        raise DeviceLost(device=device, what=what) from error


def check(vk: Any, result: int) -> None:
    """For functions of the library that are called without the package's wrapper."""
    if result != vk.VK_SUCCESS:
        raise vk.exception_codes.get(result, vk.VkErrorUnknown)()
