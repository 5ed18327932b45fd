"""What the Metal device says where it cannot run, on every system; what it runs is tested in tests/targets/metal."""

import ctypes
import importlib.machinery
import importlib.util
import platform
import sys

import pytest

from dsv3c.runtime.devices.metal import gpu as metal_gpu
from dsv3c.runtime.devices.metal.gpu import Gpu, choose, load_libraries
from dsv3c.runtime.errors import DeviceApiMissing, DeviceLost, DeviceMemoryRefused, NoDeviceFound, UnknownDevice
from dsv3c.runtime.errors import WrongMachine as OtherMachine


@pytest.fixture
def mac(monkeypatch):
    """This process believes to run on a Mac with Apple silicon."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    return monkeypatch


@pytest.mark.skipif(sys.platform == "darwin", reason="this is macOS")
def test_other_systems_are_told_to_use_a_mac():
    with pytest.raises(DeviceApiMissing, match="it is a part of macOS, this is"):
        load_libraries()


def test_macs_with_intel_cpus_are_refused(mac):
    mac.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(OtherMachine, match="compiled for arm64 on macOS, this machine is x86_64 on macOS"):
        load_libraries()


def test_a_missing_package_is_named(mac):
    mac.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeviceApiMissing, match=r"(?s)apache-tvm is not installed.*dsv3c-runtime\[metal\]"):
        load_libraries()


def test_a_package_without_the_metal_runtime_is_named(mac, tmp_path):
    spec = importlib.machinery.ModuleSpec("tvm", None, origin=str(tmp_path / "tvm" / "__init__.py"))
    mac.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(DeviceApiMissing, match=r"libtvm_runtime\.dylib"):
        load_libraries()


def test_both_libraries_are_loaded_for_all_to_see(mac, tmp_path):
    spec = importlib.machinery.ModuleSpec("tvm", None, origin=str(tmp_path / "__init__.py"))
    mac.setattr(importlib.util, "find_spec", lambda name: spec)
    loaded = []
    mac.setattr(ctypes, "CDLL", lambda path, mode: loaded.append((path, mode)))
    load_libraries()
    names = ("libtvm_runtime.dylib", "libtvm_runtime_metal.dylib")
    assert loaded == [(str(tmp_path / "lib" / name), ctypes.RTLD_GLOBAL) for name in names]


def test_a_runtime_without_metal_is_another_version(monkeypatch):
    import tvm_ffi

    def missing(name):
        raise ValueError(f"Cannot find global function {name}")

    monkeypatch.setattr(tvm_ffi, "get_global_func", missing)
    with pytest.raises(DeviceApiMissing, match=r"another version: Cannot find global function runtime\.TVMTensor"):
        Gpu()


class Numbered:
    """As much of a Gpu as is needed to choose one."""

    def __init__(self, number):
        self.number = number


def test_the_first_gpu_is_taken_or_the_one_of_that_number():
    found = [Numbered(0), Numbered(1)]
    assert choose(None, lambda: found) is found[0]
    assert choose("1", lambda: found) is found[1]
    with pytest.raises(UnknownDevice, match="no Metal device is 'M4'; there are 0, 1"):
        choose("M4", lambda: found)


def test_no_gpu_at_all_is_said():
    with pytest.raises(NoDeviceFound, match="Metal finds no device"):
        choose(None, lambda: [])


def gpu_with(**functions):
    """A Gpu whose functions of TVM's runtime are these."""
    import tvm_ffi

    gpu = Gpu.__new__(Gpu)
    gpu._ffi, gpu.name = tvm_ffi, "Metal device 0"
    gpu._device, gpu._bytes = tvm_ffi.device("cpu", 0), tvm_ffi.dtype("uint8")
    gpu.__dict__ |= functions
    return gpu


def failing(*_):
    raise RuntimeError("GPUError: out of everything\nat a place")


def test_refused_memory_names_what_it_was_for():
    with pytest.raises(DeviceMemoryRefused, match="Metal device 0 refused 64 bytes for the cache"):
        gpu_with(_allocate=failing).allocate(64, "the cache")


def test_a_gpu_that_fails_is_lost_with_its_reason():
    with pytest.raises(DeviceLost, match=r"lost while it ran the entry decode \(GPUError: out of everything\)"):
        gpu_with(_synchronize=failing).wait("the entry decode")


def test_a_gpu_that_tells_no_limit_has_none():
    assert gpu_with(_attribute=lambda *_: None, _kind=8, number=0).available() is None
    assert gpu_with(_attribute=lambda *_: 1 << 34, _kind=8, number=0).available() == 1 << 34


def test_listing_needs_the_libraries(monkeypatch):
    monkeypatch.setattr(metal_gpu, "load_libraries", failing)
    with pytest.raises(RuntimeError):
        metal_gpu.listed()
