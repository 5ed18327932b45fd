"""The Metal device's memory and faults, on this CPU behind TVM's interfaces."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.devices.metal import device as metal
from dsv3c.runtime.devices.metal.device import needs
from dsv3c.runtime.devices.metal.gpu import Gpu
from dsv3c.runtime.errors import (
    DeviceLost,
    DeviceMemoryShort,
    HashMismatch,
    KernelMissing,
    LibraryInvalid,
    ManifestInvalid,
)
from dsv3c.targets.gpu.capabilities import NOTHING
from tests.device.metal import Runner
from tests.runtime.slots import SPANS, check_rows
from tests.targets.gpu.op_tests import GpuOpTests, Launches
from tests.targets.gpu.shim.library import ShimFault
from tests.targets.metal import loader

SLOTS = 64


@pytest.fixture(scope="module")
def artifact(artifacts):
    return Artifact.open(artifacts("int4-g32"))


@pytest.fixture
def device(artifact, modules):
    opened = metal.MetalDevice(artifact, SLOTS, None)
    yield opened
    opened.close()


def contents(device, buffer):
    array = np.empty(buffer.shape[0], np.uint8)
    device._gpu.copy(buffer, device._gpu.host(array))
    return array


def test_weights_arrive_whole_in_chunks_of_any_size(artifact, modules, monkeypatch):
    monkeypatch.setattr(metal, "CHUNK", 4096)
    opened = metal.MetalDevice(artifact, SLOTS, None)
    file = np.fromfile(artifact.folder / "weights.safetensors", np.uint8)
    for index, buffer in enumerate(artifact.plan.buffers):
        if buffer.kind == "weight":
            start = artifact.tensors[buffer.tensor].offset + buffer.offset
            np.testing.assert_array_equal(
                contents(opened, opened._buffers[index])[: buffer.bytes], file[start : start + buffer.bytes]
            )
    opened.close()


def test_bytes_behind_the_last_word_of_a_weight_are_zero():
    piece = metal._pieces(np.arange(1, 6, dtype=np.uint8))
    np.testing.assert_array_equal(piece(0, 4), [1, 2, 3, 4])
    np.testing.assert_array_equal(piece(4, 4), [5, 0, 0, 0])


def test_caches_are_zero_when_the_device_opens(device):
    assert all(not contents(device, cache).any() for cache in device._caches)


def test_results_have_a_buffer_for_each_offset_of_the_arena(device, artifact):
    """As large as the largest that starts there, and no other."""
    by_offset = {}
    for index, buffer in enumerate(artifact.plan.buffers):
        if buffer.kind == "arena":
            by_offset.setdefault(buffer.offset, set()).add(id(device._buffers[index]))
            assert device._buffers[index].shape[0] >= buffer.bytes
    assert all(len(buffers) == 1 for buffers in by_offset.values())
    assert len(set().union(*by_offset.values())) == len(by_offset)


def test_the_plan_of_memory_covers_what_is_allocated(artifact, modules, monkeypatch):
    asked = []
    allocate = Gpu.allocate
    monkeypatch.setattr(Gpu, "allocate", lambda gpu, size, what: asked.append(size) or allocate(gpu, size, what))
    metal.MetalDevice(artifact, SLOTS, None).close()
    planned = needs(artifact.plan, SLOTS)
    pages = sum(-(-size // metal.PAGE) * metal.PAGE for size in asked)
    assert pages == planned.total - planned.staging


def test_too_little_memory_is_said_before_any_is_taken(artifact, modules, monkeypatch):
    total = needs(artifact.plan, SLOTS).total
    monkeypatch.setattr(Gpu, "available", lambda gpu: total - 1)
    monkeypatch.setattr(Gpu, "allocate", lambda *_: pytest.fail("allocated"))
    with pytest.raises(
        DeviceMemoryShort, match=rf"has {total - 1} bytes of memory, {total} are needed: \d+ for weights"
    ):
        metal.MetalDevice(artifact, SLOTS, None)


@pytest.mark.parametrize("source, target, count", [(0, 32, 16), (8, 4, 20), (4, 8, 20), (3, 3, 5), (7, 0, 1)])
def test_slots_are_copied_as_if_all_at_once(device, artifact, source, target, count):
    width = artifact.plan.caches[0].slot_bytes
    rows = np.random.default_rng(1).integers(0, 255, (SLOTS, width)).astype(np.uint8)
    for cache in device._caches:
        device._gpu.copy(device._gpu.host(rows.reshape(-1)), cache)
    device.copy_slots(source, target, count)
    expected = rows.copy()
    expected[target : target + count] = rows[source : source + count]
    for cache in device._caches:
        np.testing.assert_array_equal(contents(device, cache).reshape(SLOTS, width), expected)


@pytest.mark.parametrize(("start", "count"), SPANS)
def test_rows_of_slots_are_read_and_written(start, count, device, artifact):
    check_rows(device, artifact.plan, start, count)


def test_a_kernel_that_the_compiler_refuses_is_named(device, monkeypatch):
    def refuse(name, query_imports):
        raise RuntimeError("Fail to compile metal source: program_source:3: error")

    monkeypatch.setattr(device._kernels, "_module", SimpleNamespace(get_function=refuse))
    device.inputs["control"][:2] = 1, 1
    with pytest.raises(
        LibraryInvalid, match=r"metal\.dylib cannot be loaded as a kernel library: \w+: Fail to compile"
    ):
        device.run("decode")


def test_a_kernel_that_the_library_lacks_is_named(device):
    form = next(iter(device._steps["decode"].launches(1, 1))).form
    with pytest.raises(KernelMissing, match=r"metal\.dylib does not export 'nothing_0'"):
        device._kernels.function(replace(form, function="nothing_0"))


@pytest.mark.skipif(sys.platform == "darwin", reason="there it can be loaded")
def test_a_library_for_another_system_is_refused(artifact, modules):
    """TVM's own loader refuses it; the fault names the file."""
    library = artifact.folder / "kernels" / "metal.dylib"
    with pytest.raises(LibraryInvalid, match=r"metal\.dylib cannot be loaded as a kernel library: .*ELF"):
        Gpu(kind=loader.CPU).load(library)


def test_a_changed_library_is_not_loaded(artifacts, modules, tmp_path):
    copied = shutil.copytree(artifacts("int4-g32"), tmp_path / "copied")
    library = copied / "kernels" / "metal.dylib"
    library.write_bytes(library.read_bytes()[:-1] + b"\1")
    with pytest.raises(HashMismatch, match=r"metal\.dylib"):
        metal.MetalDevice(Artifact.open(copied), SLOTS, None)


def test_an_artifact_without_a_library_is_refused(artifact, modules):
    target = replace(artifact.manifest.target, levels=())
    without = replace(artifact, manifest=replace(artifact.manifest, target=target))
    with pytest.raises(ManifestInvalid, match=r"target\.levels.* names no library"):
        metal.MetalDevice(without, SLOTS, None)


def test_a_launch_that_fails_names_the_kernel(device, modules, monkeypatch):
    def outside(*_):
        raise ShimFault("outside")

    monkeypatch.setattr(modules[-1], "launch", outside)
    device.inputs["control"][:2] = 1, 1
    with pytest.raises(DeviceLost, match=r"Metal device 0 was lost while it ran \w+ \(.*outside\)"):
        device.run("decode")


def test_every_call_is_timed_and_what_was_not_launched_is_zero(device, modules):
    device.inputs["control"][:2] = 1, 1
    modules[-1].launches.clear()
    seconds = device.run_timed("decode")
    assert (seconds > 0).sum() == len(modules[-1].launches) and (seconds >= 0).all()


def test_an_output_has_the_rows_of_the_step(device, artifact):
    """Only those are fetched; all others stay what they were."""
    device.inputs["control"][:2] = 2, 2
    device.run("decode")
    logits = device.output("decode", "logits")
    width = logits.size // artifact.plan.bounds.R
    assert logits[: 2 * width].any() and not logits[2 * width :].any()


def test_the_device_says_what_it_took(device):
    report = device.report()
    assert (report["device"], report["cache_slots"]) == ("metal", SLOTS)
    assert report["memory_bytes"] == device.needs.total


def test_a_gpu_of_this_cpu_has_its_memory(modules, open_cpu):
    assert open_cpu(None).available() > 0 and open_cpu(None).exists()


@pytest.mark.parametrize("case", ["linear-int4-g32-asym-t5-n15-k31", "rope-table", "absorbed-f32-c15-h5"])
def test_the_runner_of_a_real_gpu_runs_kernels(case, modules, open_cpu, tmp_path):
    """It is there for Macs; here it drives the shim."""
    GpuOpTests().test_matches_numpy(case, Launches(Runner(open_cpu(None), tmp_path).run, NOTHING))


@pytest.mark.skipif(sys.platform == "darwin", reason="there it runs for minutes")
def test_the_script_for_a_mac_says_what_it_needs():
    script = Path(__file__).parents[2] / "device" / "run_on_mac.sh"
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.split(",")[0]) == (2, "this needs macOS on Apple silicon")
