"""The Vulkan device by itself: both ways to reach its memory, times, copies, its cache of pipelines, and refusals."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.devices.vulkan import memory
from dsv3c.runtime.devices.vulkan.device import VulkanDevice
from dsv3c.runtime.devices.vulkan.gpu import Gpu
from dsv3c.runtime.engine.session import Request, Session
from dsv3c.runtime.errors import DeviceLacks, DeviceMemoryShort, HashMismatch, KernelMissing, ModuleInvalid
from tests.runtime.slots import SPANS, check_rows
from tests.targets.vulkan.modules import capabilities, named, validate

SLOTS = 64
TOKENS = np.arange(3, 40, dtype=np.int32)


@pytest.fixture(scope="module")
def artifact(artifacts, vulkan):
    return Artifact.open(artifacts("int4-g32"))


@pytest.fixture
def opened(artifact):
    """Opens devices, which are closed when the test ends."""
    devices = []

    def device(direct=None, slots=SLOTS):
        devices.append(VulkanDevice(artifact, slots, None, direct))
        return devices[-1]

    yield device
    for found in devices:
        found.close()


def logits(device, artifact):
    """Of all of TOKENS, in one step and then the last of them again, one by one."""
    session = Session(artifact.plan, device, artifact.manifest.vocab_size)
    sequence = session.new_sequence()
    (first,) = session.run([Request(sequence, TOKENS, "all")])
    more = [session.run([Request(sequence, TOKENS[i : i + 1], "last")])[0] for i in range(3)]
    return np.concatenate([first, *more])


def test_memory_that_the_host_does_not_see_is_filled_and_read_by_copies(opened, artifact, monkeypatch):
    """Weights through staging buffers that are much smaller than they are; the results are the same to the bit."""
    expected = logits(opened(), artifact)
    monkeypatch.setattr(memory, "STAGING", 1 << 16)
    device = opened(direct=False)
    assert not device.report()["mapped"]
    np.testing.assert_array_equal(logits(device, artifact), expected)


def test_weights_and_caches_are_spread_over_allocations_of_any_size(opened, artifact, monkeypatch):
    expected = logits(opened(), artifact)
    made, create = [], Gpu.device_buffer
    monkeypatch.setattr("dsv3c.runtime.devices.vulkan.gpu._largest_allocation", lambda *_: 1 << 20)
    monkeypatch.setattr(Gpu, "device_buffer", lambda gpu, size, what: made.append(size) or create(gpu, size, what))
    np.testing.assert_array_equal(logits(opened(), artifact), expected)
    assert len(made) > 6 and max(made[1:]) <= 1 << 20  # behind the arena


@pytest.mark.parametrize("direct", [True, False])
def test_every_call_is_timed_and_computes_what_a_plain_run_does(direct, opened, artifact):
    device = opened(direct)
    logits(device, artifact)
    expected = device.output("decode", "logits").copy()
    seconds = device.run_timed("decode")
    assert seconds.size == len(artifact.plan.entries["decode"].calls)
    assert np.all(seconds >= 0) and 0 < seconds.sum() < 60
    np.testing.assert_array_equal(device.output("decode", "logits"), expected)


@pytest.mark.parametrize(("source", "target", "count"), [(0, 16, 16), (3, 9, 20), (9, 3, 20), (5, 5, 8), (30, 0, 1)])
def test_slots_are_copied_as_they_were_also_when_runs_overlap(source, target, count, opened):
    device = opened()
    caches = [place.buffer.mapped[place.offset :][: place.size].reshape(SLOTS, -1) for place in device._places.caches]
    generator = np.random.default_rng(1)
    for cache in caches:
        cache[:] = generator.integers(0, 256, cache.shape)
    expected = [cache.copy() for cache in caches]
    for cache in expected:
        cache[target : target + count] = cache[source : source + count].copy()
    device.copy_slots(source, target, count)
    for cache, wanted in zip(caches, expected, strict=True):
        np.testing.assert_array_equal(cache, wanted)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(("start", "count"), SPANS)
def test_rows_of_slots_are_read_and_written(start, count, direct, opened, artifact):
    check_rows(opened(direct), artifact.plan, start, count)


def test_a_step_allocates_and_records_nothing_once_its_launches_are_known(opened, artifact, monkeypatch):
    device = opened()
    expected = logits(device, artifact)
    monkeypatch.setattr(device._recorder, "record", lambda launches: pytest.fail("recorded again"))
    monkeypatch.setattr(device._gpu, "_buffer", lambda *_: pytest.fail("allocated"))
    np.testing.assert_array_equal(logits(device, artifact), expected)


def test_a_step_that_is_interrupted_leaves_the_device_usable(opened, artifact, monkeypatch):
    device = opened()
    expected = logits(device, artifact)

    class Interrupted:
        """The module `vulkan`, or its library, whose first wait for a fence is interrupted."""

        def __init__(self, real):
            self._real = real

        def __getattr__(self, name):
            if name == "lib":
                return Interrupted(self._real.lib)
            return interrupt if name == "vkWaitForFences" else getattr(self._real, name)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(device._gpu, "vk", Interrupted(device._gpu.vk))
        with pytest.raises(KeyboardInterrupt):
            logits(device, artifact)
    np.testing.assert_array_equal(logits(device, artifact), expected)


def test_too_little_memory_is_told_before_anything_is_taken(opened, monkeypatch):
    monkeypatch.setattr(Gpu, "available", lambda gpu: 1_000_000)
    monkeypatch.setattr(Gpu, "device_buffer", lambda *_: pytest.fail("allocated"))
    with pytest.raises(DeviceMemoryShort, match=r"has 1000000 bytes of memory, \d+ are needed: \d+ for weights, "):
        opened()


def test_a_limit_that_is_too_low_is_named_with_what_was_found_and_what_is_needed(opened):
    limit = opened()._gpu.limits.maxStorageBufferRange
    slots = limit // 288 + 1  # rows of 144 bfloat16
    with pytest.raises(DeviceLacks, match=f"maxStorageBufferRange is {limit}, {slots * 288} is needed"):
        opened(slots=slots)


@pytest.mark.parametrize("damage", ["flip a byte", "cut it short", "empty it"])
def test_a_damaged_cache_of_pipelines_is_passed_over(damage, artifact, opened):
    opened()
    (path,) = _beside(artifact).glob("*.bin")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes({"flip a byte": data, "cut it short": data[:40], "empty it": b""}[damage])
    opened()
    assert path.read_bytes() not in (data, data[:40], b"")  # written anew


def test_the_cache_goes_to_the_users_folder_when_the_artifacts_cannot_be_written(
    artifact, opened, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shutil.rmtree(_beside(artifact), ignore_errors=True)
    _beside(artifact).write_bytes(b"a file where the folder would be")
    try:
        opened()
    finally:
        _beside(artifact).unlink()
    assert len(list((tmp_path / "dsv3c" / "pipelines").glob("*.bin"))) == 1


def _beside(artifact) -> Path:
    return artifact.folder.parent / f".{artifact.folder.name}.pipelines"


@pytest.mark.parametrize(
    ("change", "fault"), [("missing", KernelMissing), ("other bytes", HashMismatch), ("no SPIR-V", ModuleInvalid)]
)
def test_a_module_that_is_not_what_the_plan_names_is_refused(change, fault, artifact, opened, tmp_path, monkeypatch):
    folder = tmp_path / "artifact"
    shutil.copytree(artifact.folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    name = "kernels/add_0_0.spv"
    if change == "missing":
        del manifest["files"][name]
    else:
        (folder / name).write_bytes(b"\0" * manifest["files"][name]["size"])
    if change == "no SPIR-V":
        import hashlib

        manifest["files"][name]["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(fault):
        VulkanDevice(Artifact.open(folder), SLOTS, None)


@pytest.mark.needs("spirv_val")
def test_every_module_is_valid_and_asks_for_what_its_form_requires(artifacts, shader_compiler):
    """spirv-val accepts them, and they name the capability Shader, which every device has, and what they require."""
    artifact = Artifact.open(artifacts("int4-g32"))
    forms = {form.function: form for group in artifact.plan.dispatches.forms.values() for form in group}
    modules = sorted((artifact.folder / "kernels").iterdir())
    assert len(modules) > 50 and {path.name for path in modules} == {f"{name}.spv" for name in forms}
    for path in modules:
        validate(path)
        assert capabilities(path.read_bytes()) == named(forms[path.stem].requires)


def test_a_device_without_subgroups_takes_the_other_forms_to_the_same_bits(opened, artifact, monkeypatch):
    monkeypatch.setattr("dsv3c.runtime.devices.vulkan.gpu.matrices_of", lambda *_: None)
    first = opened()
    expected = logits(first, artifact)
    with monkeypatch.context() as patch:
        patch.setattr("dsv3c.runtime.devices.vulkan.gpu.subgroup_width", lambda *_: 0)
        plain = opened()
    assert first.report()["subgroup"] and not plain.report()["subgroup"]
    assert first._pipelines.of.keys() != plain._pipelines.of.keys()
    np.testing.assert_array_equal(logits(plain, artifact), expected)
