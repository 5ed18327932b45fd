"""The CPU device with a real library: a toy whose kernels are compiled from C."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dsv3c import runtime
from dsv3c.runtime import errors
from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.devices import memory
from dsv3c.runtime.devices.cpu import device as cpu
from dsv3c.runtime.devices.cpu import features as cpu_features
from dsv3c.runtime.devices.cpu.cgroup import MemoryLimit
from dsv3c.runtime.devices.cpu.cores import NumaInvalid
from dsv3c.runtime.devices.cpu.device import CpuDevice
from dsv3c.runtime.engine.session import Request, Session
from tests.conftest import TESTS
from tests.runtime import toy
from tests.runtime.slots import SPANS, check_rows
from tests.runtime.toy import expected_logits

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or cpu_features.machine() != "x86_64", reason="the toy artifact is for x86-64 Linux"
)


CALLS = TESTS.parent / "targets" / "cpu" / "calls.c"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return toy.build_library(tmp_path_factory.mktemp("library"), str(CALLS))


@pytest.fixture
def folder(tmp_path: Path, library: bytes) -> Path:
    return toy.write_artifact(tmp_path / "toy", library=library)


def test_runs_the_toy(folder: Path) -> None:
    tokens = list(range(23))
    with runtime.load(folder, threads=2) as model:
        np.testing.assert_array_equal(model.logits(tokens), expected_logits(tokens))
        best = int(expected_logits(tokens)[-1].argmax())
        assert model.generate(tokens, temperature=0, max_new_tokens=1).token_ids == (best,)
        report = model.report()
        assert model.session.device.library.function("toy_threads")() == 2
    assert (report["level"], report["threads"], report["library"]) == ("base", 2, "kernels/base.so")
    assert report["cache_slots"] == 64


def test_a_step_is_one_call_of_a_library_that_has_the_routine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuDevice, "_call", lambda *_: pytest.fail("a kernel was called from Python"))
    with runtime.load(folder) as model:
        np.testing.assert_array_equal(model.logits([3, 1, 2]), expected_logits([3, 1, 2]))


def test_a_library_without_the_routine_is_called_kernel_by_kernel(tmp_path: Path) -> None:
    with runtime.load(toy.write_artifact(tmp_path / "toy", library=toy.build_library(tmp_path))) as model:
        np.testing.assert_array_equal(model.logits([3, 1, 2]), expected_logits([3, 1, 2]))


# What a library of the thread pool has besides, on a machine with three memory nodes.
NODES = r"""
#include <stdint.h>
static uint64_t weights, spread[2];
static int spreads;
int dsv3c_nodes(uint64_t bytes) { return weights = bytes, 3; }
void dsv3c_spread(const void *data, uint64_t bytes) { spread[spreads++] = data ? bytes : 0; }
uint64_t toy_weights(void) { return weights; }
uint64_t toy_spread(int which) { return spread[which]; }
"""


@pytest.fixture(scope="module")
def on_nodes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "nodes.c").write_text(NODES)
    return toy.build_library(folder, str(CALLS), str(folder / "nodes.c"))


def test_several_nodes_read_the_weights_themselves_and_share_caches(
    tmp_path: Path, on_nodes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    advised = []
    monkeypatch.setattr(memory, "_advise", lambda _, name: advised.append(name))
    with runtime.load(toy.write_artifact(tmp_path / "toy", library=on_nodes)) as model:
        found, report = model.session.device.library, model.report()
        np.testing.assert_array_equal(model.logits([3, 1, 2]), expected_logits([3, 1, 2]))
        asked, spread = (found.function(name) for name in ("toy_weights", "toy_spread"))
        assert (report["nodes"], asked()) == (3, report["weight_bytes"])
        assert [spread(0), spread(1)] == [report["arena_bytes"], report["cache_bytes"]]
    assert "MADV_WILLNEED" not in advised
    with runtime.load(tmp_path / "toy", numa="off") as model:
        assert model.report()["nodes"] == 1
        assert model.session.device.library.function("toy_weights")() == 0
    assert advised.count("MADV_WILLNEED") == 1


def test_weights_beyond_the_control_groups_memory_are_not_divided(
    tmp_path: Path, on_nodes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit, nodes in ((10, 1), (1 << 40, 3)):
        monkeypatch.setattr(cpu, "memory_limit", lambda limit=limit: MemoryLimit(limit, limit))
        folder = toy.write_artifact(tmp_path / str(limit), library=on_nodes)
        with runtime.load(folder) as model:
            assert model.report()["nodes"] == nodes


def test_a_library_from_before_there_were_nodes_keeps_one(folder: Path) -> None:
    with runtime.load(folder) as model:
        assert model.report()["nodes"] == 1


def test_other_words_for_numa_are_refused(folder: Path) -> None:
    with pytest.raises(NumaInvalid, match="numa is 'interleave', it must be one of auto, off"):
        runtime.load(folder, numa="interleave")


def test_buffers_are_aligned_and_weights_are_the_file(folder: Path) -> None:
    device = CpuDevice(Artifact.open(folder), 64, 1)
    for array in device._arrays:
        assert array.ctypes.data % 64 == 0
        assert array.ndim == 1
    assert str(folder / "weights.safetensors") in Path("/proc/self/maps").read_text()
    device.close()


def test_copies_slots_in_every_cache(folder: Path) -> None:
    device = CpuDevice(Artifact.open(folder), 64, 1)
    session = Session(device._plan, device, toy.VOCAB)
    first = session.new_sequence()
    session.run([Request(first, session.tokens([1, 2, 3, 4, 5]), "last")])
    second = first.fork()
    found = session.run([Request(s, session.tokens([6]), "last") for s in (first, second)])
    for rows in found:
        np.testing.assert_array_equal(rows, expected_logits([1, 2, 3, 4, 5, 6])[-1:])


@pytest.mark.parametrize(("start", "count"), SPANS)
def test_rows_of_slots_are_read_and_written(folder: Path, start: int, count: int) -> None:
    artifact = Artifact.open(folder)
    device = CpuDevice(artifact, 64, 1)
    check_rows(device, artifact.plan, start, count)
    device.close()


def test_running_allocates_nothing(folder: Path) -> None:
    import tracemalloc

    device = CpuDevice(Artifact.open(folder), 64, 1)
    device.inputs["control"][:2] = 1, 1
    device.run("decode")
    tracemalloc.start()
    for _ in range(50):
        device.run("decode")
    left, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert left < 1024


def test_two_models_at_once(folder: Path) -> None:
    with runtime.load(folder) as first, runtime.load(folder) as second:
        np.testing.assert_array_equal(first.logits([1, 2]), second.logits([1, 2]))


def test_kernel_missing(tmp_path: Path, library: bytes) -> None:
    content = toy.plan_content()
    content["entries"]["decode"]["calls"][0][0] = "no_such_kernel"
    with pytest.raises(errors.KernelMissing, match="no_such_kernel"):
        runtime.load(toy.write_artifact(tmp_path / "toy", content, library))


@pytest.mark.parametrize("data", [b"", b"text" * 10, b"\x7fELF\x01\x01" + bytes(40)])
def test_library_is_no_library(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(errors.LibraryInvalid):
        runtime.load(toy.write_artifact(tmp_path / "toy", library=data))


def test_library_is_cut(tmp_path: Path, library: bytes) -> None:
    with pytest.raises(errors.LibraryInvalid):
        runtime.load(toy.write_artifact(tmp_path / "toy", library=library[:200]))


def test_library_of_another_machine(tmp_path: Path, library: bytes) -> None:
    data = library[:18] + b"\xb7\x00" + library[20:]
    with pytest.raises(errors.WrongMachine, match="aarch64, this machine is x86_64"):
        runtime.load(toy.write_artifact(tmp_path / "toy", library=data))


MACH_O = b"\xcf\xfa\xed\xfe\x0c\x00\x00\x01" + bytes(40)


def test_library_of_another_system(tmp_path: Path) -> None:
    with pytest.raises(errors.WrongMachine, match="for aarch64 on macOS, this machine is x86_64 on Linux"):
        runtime.load(toy.write_artifact(tmp_path / "toy", library=MACH_O))


def test_library_of_linux_on_macos(tmp_path: Path, library: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path, head = tmp_path / "kernels.so", library[:18] + b"\xb7\x00"
    monkeypatch.setattr(cpu.sys, "platform", "darwin")
    with pytest.raises(errors.WrongMachine, match=r"aarch64 on Linux, .* is aarch64 on macOS\n.*arm:os=macos"):
        cpu._require_library_for(path, head, "aarch64")
    cpu._require_library_for(path, MACH_O[:20], "aarch64")
    with pytest.raises(errors.WrongMachine, match="compiled for aarch64, this machine is x86_64\n"):
        cpu._require_library_for(path, MACH_O[:20], "x86_64")


def test_library_changed_after_compilation(folder: Path) -> None:
    path = folder / "kernels" / "base.so"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(errors.HashMismatch):
        runtime.load(folder)


def test_target_without_a_device(folder: Path) -> None:
    toy.edit_json(folder / "manifest.json", "target", "name", value="abacus")
    with pytest.raises(errors.NoDevice, match="abacus"):
        runtime.load(folder)


def test_memory_refused(tmp_path: Path, library: bytes) -> None:
    content = toy.plan_content()
    content["arena_bytes"] = 2**44
    with pytest.raises(errors.MemoryRefused, match="activations"):
        runtime.load(toy.write_artifact(tmp_path / "toy", content, library))


def test_no_torch_and_no_tvm_come_along(folder: Path) -> None:
    code = (
        "import sys, dsv3c.runtime\n"
        f"model = dsv3c.runtime.load({str(folder)!r})\n"
        "model.generate([1, 2], max_new_tokens=2)\n"
        "print(sorted({'torch', 'tvm', 'onnx', 'dsv3c.compiler'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- one artifact after another at the same path


def replaced(folder: Path, library: bytes, scale: float) -> None:
    """Another artifact in the folder's place, by renaming, as the compiler does it."""
    new = toy.write_artifact(folder.with_name("new"), library=library)
    (new / "weights.safetensors").write_bytes(toy.weights_bytes({"scale": np.full(1, scale, np.float32)}))
    toy.refresh(new, "weights.safetensors")
    folder.rename(folder.with_name(f"old{scale}"))
    new.rename(folder)


def test_an_artifact_that_takes_a_path_runs_its_own_kernels(folder: Path, tmp_path: Path) -> None:
    tokens = [1, 2, 3]
    with runtime.load(folder) as model:
        before = model.logits(tokens)
        replaced(folder, toy.build_library(tmp_path, "-DFACTOR=7907"), 2)
        np.testing.assert_array_equal(model.logits(tokens), before)  # the old one is still itself
        with runtime.load(folder) as second:
            after = second.logits(tokens)
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    with runtime.load(copied) as model:
        np.testing.assert_array_equal(model.logits(tokens), after)
    assert not np.array_equal(before * 2, after)


def test_what_is_opened_before_a_swap_is_the_old_artifact(folder: Path, library: bytes) -> None:
    opened = Artifact.open(folder)
    replaced(folder, library, 3)
    device = CpuDevice(opened, 64, 1)
    assert device._arrays[10][0] == 1  # the old scale
    device.close()
    opened = Artifact.open(folder)
    shutil.rmtree(folder)
    with pytest.raises(errors.FileUnreadable):
        CpuDevice(opened, 64, 1)


def test_closing_gives_everything_back(folder: Path) -> None:
    def counts() -> tuple[int, int, int]:
        maps = Path("/proc/self/maps").read_text()
        return maps.count("dsv3c"), maps.count("weights.safetensors"), len(os.listdir("/proc/self/fd"))

    runtime.load(folder).close()
    gc.collect()  # what tests before this one left
    before = counts()
    for _ in range(20):
        with runtime.load(folder) as model:
            model.logits([1])
    del model
    assert counts() == before


# ---- plans and kernels that do not belong together


def test_kernels_that_name_another_plan_are_refused(tmp_path: Path) -> None:
    library = toy.build_library(tmp_path, f'-DDSV3C_PLAN="{64 * "0"}"')
    folder = toy.write_artifact(tmp_path / "toy", library=library)
    with pytest.raises(errors.PlanNotOfKernels, match=r"plan\.json is not the plan that the kernels of .*base\.so"):
        runtime.load(folder)


@pytest.mark.parametrize("at", [0, 1])
def test_a_kernel_that_refuses_its_operands_is_named(folder: Path, at: int) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    (call,) = plan["entries"]["decode"]["calls"]
    toy.edit_json(folder / "plan.json", "entries", "decode", "calls", value=[call, call])
    toy.edit_json(folder / "plan.json", "entries", "decode", "calls", at, 1, value=[0, 1, 2])
    toy.refresh(folder, "plan.json")
    with runtime.load(folder) as model, pytest.raises(errors.KernelFailed, match=r"toy_step with .*takes 13 operands"):
        model.logits([1])
