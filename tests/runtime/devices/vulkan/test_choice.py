"""Which device `--device` means, and what is said where there is no Vulkan."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from dsv3c.runtime.devices import device
from dsv3c.runtime.devices.vulkan.binding import load
from dsv3c.runtime.devices.vulkan.instance import Instance, Physical
from dsv3c.runtime.errors import DeviceApiMissing, DeviceNotChosen, UnknownDevice

NAMES = (("llvmpipe (LLVM 15)", "cpu"), ("Intel UHD 630", "integrated"), ("Radeon RX 7600", "discrete"))


def instance(*kinds: str) -> Instance:
    """An instance with these devices, made without a driver."""
    made = Instance.__new__(Instance)
    chosen = [(name, kind) for name, kind in NAMES if kind in kinds]
    made.devices = tuple(
        Physical(number, name, kind, (1, 3, 0), 1, 10**9, None, None) for number, (name, kind) in enumerate(chosen)
    )
    return made


@pytest.mark.parametrize(
    ("kinds", "name"),
    [
        (("cpu", "integrated", "discrete"), "Radeon RX 7600"),
        (("cpu", "integrated"), "Intel UHD 630"),
        (("cpu",), "llvmpipe (LLVM 15)"),
    ],
)
def test_a_discrete_gpu_goes_before_an_integrated_one_and_that_before_a_cpu(kinds: tuple[str, ...], name: str) -> None:
    assert instance(*kinds).choose(None).name == name


@pytest.mark.parametrize(
    ("wanted", "number"),
    [("0", 0), (" 2 ", 2), ("radeon", 2), ("UHD", 1), ("cpu", 0), ("Integrated", 1), ("llvmpipe (LLVM 15)", 0)],
)
def test_a_number_a_part_of_the_name_or_a_type_chooses(wanted: str, number: int) -> None:
    assert instance("cpu", "integrated", "discrete").choose(wanted).number == number


@pytest.mark.parametrize("wanted", ["3", "-1", "", "geforce", "630"])
def test_what_fits_no_device_is_refused_with_the_list(wanted: str) -> None:
    with pytest.raises(UnknownDevice, match=r"there are 0: llvmpipe \(LLVM 15\) \(cpu\), 1: Intel UHD 630"):
        instance("cpu", "integrated", "discrete").choose(wanted)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vulkan", None)
    with pytest.raises(DeviceApiMissing, match=r"the package vulkan is missing(.|\n)*pip install 'dsv3c\[vulkan\]'"):
        load()


def test_a_device_is_not_chosen_for_a_target_that_has_one_only() -> None:
    class Manifest:
        target: Any = type("Target", (), {"name": "x86"})

    with pytest.raises(DeviceNotChosen, match="'gpu', but artifacts for x86"):
        device.open_device(type("Artifact", (), {"manifest": Manifest})(), 16, None, "gpu")  # type: ignore[arg-type]
