"""What is said where driver, device or memory are not as needed; of what was opened nothing stays behind."""

import ctypes.util
import hashlib
import json
import shutil

import numpy as np
import pytest

from dsv3c.runtime.artifact.artifact import Artifact, Level
from dsv3c.runtime.devices.cuda import driver as cuda
from dsv3c.runtime.devices.cuda.device import CudaDevice
from dsv3c.runtime.devices.cuda.driver import FUNCTIONS, Driver
from dsv3c.runtime.devices.cuda.gpu import Physical, choose
from dsv3c.runtime.devices.cuda.modules import capabilities, fitting_level
from dsv3c.runtime.engine.session import Request, Session
from dsv3c.runtime.errors import (
    DeviceApiMissing,
    DeviceLacks,
    DeviceLost,
    DeviceMemoryRefused,
    DeviceMemoryShort,
    DriverFailed,
    HashMismatch,
    KernelMissing,
    LibraryInvalid,
    NoDeviceFound,
    UnknownDevice,
)
from tests.targets.cuda.fatbin import read_fatbin

SLOTS = 64
OUT_OF_MEMORY, NO_DEVICE, ECC, ILLEGAL_ADDRESS, LAUNCH_FAILED, INVALID_VALUE = 2, 100, 214, 700, 719, 1


@pytest.fixture
def artifact(compiled, fake):
    found = compiled("int4-g32")
    fake.register(found)
    return Artifact.open(found.folder)


def opened_and_closed(artifact, wanted=None):
    device = CudaDevice(artifact, SLOTS, wanted)
    report = device.report()
    device.close()
    return report


def test_without_a_driver_what_to_install_is_said(monkeypatch):
    monkeypatch.setattr(cuda, "LIBRARY", "libcuda-that-is-not-there.so.1")
    with pytest.raises(DeviceApiMissing, match=r"CUDA cannot be used(.|\n)*NVIDIA's driver"):
        Driver()


def test_a_driver_that_lacks_a_function_is_refused(monkeypatch):
    monkeypatch.setattr(cuda, "LIBRARY", ctypes.util.find_library("c") or "libc.so.6")
    with pytest.raises(DeviceApiMissing, match="cuInit"):
        Driver()


def test_an_old_driver_is_named_with_the_version_that_is_needed(artifact, fake):
    fake.reset(version=11080)
    with pytest.raises(DeviceApiMissing, match=r"version 11\.8, 12\.0 is needed"):
        CudaDevice(artifact, SLOTS, None)


@pytest.mark.parametrize("devices", [0, 1])
def test_without_a_device_the_drivers_reason_is_told(devices, artifact, fake):
    fake.reset(devices=devices)
    if devices:
        fake.fail("cuDeviceGetCount", 1, NO_DEVICE)
    with pytest.raises(NoDeviceFound, match=r"CUDA finds no device(.|\n)*nvidia-smi"):
        CudaDevice(artifact, SLOTS, None)


def test_devices_are_chosen_by_number_or_part_of_their_name(artifact, fake, compiled):
    fake.reset(devices=3)
    fake.register(compiled("int4-g32"))
    assert opened_and_closed(artifact)["name"] == "Fake GPU A"
    assert opened_and_closed(artifact, "2")["name"] == "Fake GPU C"
    assert opened_and_closed(artifact, "gpu b")["name"] == "Fake GPU B"


@pytest.mark.parametrize("wanted", ["7", "Radeon", "", "-1"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(wanted, artifact, fake):
    with pytest.raises(UnknownDevice, match=r"there are 0 \(Fake GPU A, compute capability 8\.6\)"):
        CudaDevice(artifact, SLOTS, wanted)


@pytest.mark.parametrize(("capability", "suggestion"), [(75, "sm_75"), (70, "sm_70")])
def test_a_device_that_no_binary_fits_is_named_with_what_the_artifact_has(capability, suggestion, artifact, fake):
    fake.reset(capability=capability)
    found = f"{capability // 10}.{capability % 10}"
    with pytest.raises(DeviceLacks, match=f"capability {found}, .* compute_80, sm_80, sm_86(.|\n)*arch={suggestion}"):
        CudaDevice(artifact, SLOTS, None)


@pytest.mark.parametrize(
    ("capability", "level"), [(80, "sm_80"), (86, "sm_86"), (89, "sm_86"), (90, "compute_80"), (120, "compute_80")]
)
def test_machine_code_of_the_generation_is_taken_else_ptx(capability, level, artifact, fake, compiled):
    """And the level that the report names is the image that the driver takes."""
    fake.reset(capability=capability)
    fake.register(compiled("int4-g32"))
    assert (opened_and_closed(artifact)["level"], fake.loaded) == (level, level)


def in_a_file_each(artifact, folder):
    """The artifact with a cubin or PTX for each level, as it was written before there was a fat binary."""
    shutil.copytree(artifact.folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    target, files = manifest["target"], manifest["files"]
    images = read_fatbin((folder / target["levels"][0]["file"]).read_bytes())
    (folder / target["levels"][0]["file"]).unlink()
    del files[target["levels"][0]["file"]]
    for level in target["levels"]:
        image = images[level["name"]]
        level["file"] = f"kernels/{level['name']}" + (".cubin" if level["name"].startswith("sm_") else ".ptx")
        (folder / level["file"]).write_bytes(image)
        files[level["file"]] = {"size": len(image), "sha256": hashlib.sha256(image).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Artifact.open(folder)


@pytest.mark.parametrize(("capability", "level"), [(80, "sm_80"), (89, "sm_86"), (90, "compute_80")])
def test_artifacts_with_a_file_for_each_level_still_run(capability, level, artifact, fake, compiled, tmp_path):
    older = in_a_file_each(artifact, tmp_path / "older")
    fake.reset(capability=capability)
    fake.register(compiled("int4-g32"))
    device = CudaDevice(older, SLOTS, None)
    try:
        assert (device.report()["level"], fake.loaded) == (level, level)
        assert np.isfinite(step(device, older)).all()
    finally:
        device.close()


def test_of_several_architectures_the_best_that_fits_is_taken():
    levels = [Level(name, (name,), name) for name in ("compute_80", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120")]

    def best(major, minor):
        return fitting_level(levels, Physical(0, 0, "GPU", (major, minor), 0)).name

    chosen = {
        (8, 0): "sm_80",
        (8, 6): "sm_86",
        (8, 7): "sm_86",
        (8, 9): "sm_89",
        (9, 0): "sm_90",
        (10, 3): "compute_80",
    }
    assert {capability: best(*capability) for capability in chosen} == chosen
    assert {"sm_89", "sm_80", "compute_75", "compute_89"} <= capabilities(Physical(0, 0, "", (8, 9), 0))
    assert not {"sm_90", "sm_75", "compute_90"} & capabilities(Physical(0, 0, "", (8, 9), 0))


def test_too_little_memory_is_told_by_part_before_anything_is_taken(artifact, fake, compiled):
    fake.reset(capacity=1_000_000)
    fake.register(compiled("int4-g32"))
    fake.fail("cuMemAlloc_v2", 1, INVALID_VALUE)
    with pytest.raises(DeviceMemoryShort, match=r"has 1000000 bytes of memory, \d+ are needed: \d+ for weights"):
        CudaDevice(artifact, SLOTS, None)


def test_a_cache_that_kernels_could_not_count_is_refused_before_anything_is_taken(artifact, fake, compiled):
    fake.reset(capacity=1 << 40)
    fake.register(compiled("int4-g32"))
    slots = 2**31 // artifact.plan.caches[0].width + 1
    with pytest.raises(
        DeviceLacks, match=r"the buffer cache.0 would have \d+ elements(.|\n)*lower context or max_batch"
    ):
        CudaDevice(artifact, slots, None)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_memory_refused_at_any_allocation_names_it_and_gives_the_others_back(number, artifact, fake):
    what = ["the weights", "the cache", "the activations", "the inputs"][number - 1]
    fake.fail("cuMemAlloc_v2", number, OUT_OF_MEMORY)
    with pytest.raises(DeviceMemoryRefused, match=rf"Fake GPU A refused \d+ bytes for {what}"):
        CudaDevice(artifact, SLOTS, None)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_pinned_memory_refused_at_any_allocation_is_told(number, artifact, fake):
    fake.fail("cuMemAllocHost_v2", number, OUT_OF_MEMORY)
    with pytest.raises(DeviceMemoryRefused, match=r"refused \d+ bytes for (the inputs|staging|what a step gives)"):
        CudaDevice(artifact, SLOTS, None)


def step(device, artifact):
    session = Session(artifact.plan, device, artifact.manifest.vocab_size)
    sequence = session.new_sequence()
    return session.run([Request(sequence, np.array([5], np.int32), "last")])[0]


@pytest.mark.parametrize("code", [ECC, ILLEGAL_ADDRESS, LAUNCH_FAILED])
@pytest.mark.parametrize("number", [1, 40])
def test_a_device_lost_at_any_kernel_is_told_and_can_still_be_closed(number, code, artifact, fake):
    device = CudaDevice(artifact, SLOTS, None)
    try:
        fake.fail_kernel(number, code)
        with pytest.raises(DeviceLost, match=rf"Fake GPU A was lost while it ran the entry decode .*{code}"):
            step(device, artifact)
        with pytest.raises(DeviceLost):  # for good
            step(device, artifact)
    finally:
        device.close()


def test_a_model_is_loaded_again_after_a_device_was_lost(artifact, fake, compiled):
    device = CudaDevice(artifact, SLOTS, None)
    fake.fail_kernel(3, ILLEGAL_ADDRESS)
    with pytest.raises(DeviceLost):
        step(device, artifact)
    device.close()
    assert fake.live == 0
    fake.reset()  # a process of its own on a real machine
    fake.register(compiled("int4-g32"))
    device = CudaDevice(artifact, SLOTS, None)
    assert np.isfinite(step(device, artifact)).all()
    device.close()


FIRST_USE = [name for name in FUNCTIONS if name.startswith(("cuGraph", "cuMemcpyHtoD", "cuMemcpyDtoH", "cuStreamSyn"))]


@pytest.mark.parametrize("function", [name for name in FIRST_USE if "Destroy" not in name and "SetParams" not in name])
def test_a_refusal_in_a_step_is_told_with_the_drivers_function(function, artifact, fake):
    device = CudaDevice(artifact, SLOTS, None)
    try:
        fake.fail(function, 1, INVALID_VALUE)
        with pytest.raises(DriverFailed, match=f"the entry decode: {function.removesuffix('_v2')}"):
            step(device, artifact)
        assert np.isfinite(step(device, artifact)).all()  # the device is as good as before
    finally:
        device.close()


def test_a_refusal_of_the_binary_is_told_with_the_drivers_version(artifact, fake):
    fake.fail("cuModuleLoadData", 1, 209)
    with pytest.raises(LibraryInvalid, match=r"kernels\.fatbin(.|\n)*driver 13\.0"):
        CudaDevice(artifact, SLOTS, None)


def test_a_kernel_that_the_binary_lacks_is_named(artifact, fake):
    fake.fail("cuModuleGetFunction", 3, 500)
    with pytest.raises(KernelMissing, match="does not export"):
        CudaDevice(artifact, SLOTS, None)


def test_a_changed_binary_is_refused_before_the_driver_sees_it(artifact, fake, tmp_path):
    shutil.copytree(artifact.folder, tmp_path / "changed")
    path = tmp_path / "changed" / "kernels" / "kernels.fatbin"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(HashMismatch):
        CudaDevice(Artifact.open(tmp_path / "changed"), SLOTS, None)


def test_a_number_is_no_part_of_a_name():
    found = [Physical(0, 0, "RTX 3091", (8, 6), 0), Physical(1, 1, "RTX 4090", (8, 9), 0)]
    assert choose(found, "1") is found[1]
    assert choose(found, "RTX 4090") is found[1]
    with pytest.raises(UnknownDevice):
        choose(found, "4090")
